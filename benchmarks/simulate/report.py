"""Results for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from benchmarks.simulate.compare import Plan, Row
from benchmarks.simulate.measures import Interval

_HEAD = ("policy", "req/s", "goodput %", "TTFT p50 s", "TTFT p99 s", "TPOT p99 ms", "cached %")


class Report(msgspec.Struct, frozen=True):
    """Everything that makes a result repeatable, and the result."""

    load: str
    requests: int
    recorded_rate: float
    gpu: str
    speeds: tuple[float, ...]
    slo_ttft_s: float
    slo_tpot_s: float
    seeds: tuple[int, ...]
    search: bool
    rows: list[Row]


def report(plan: Plan, rows: list[Row]) -> Report:
    """The results of ``plan``."""
    return Report(
        load=plan.load.name,
        requests=len(plan.load.requests),
        recorded_rate=plan.load.rate,
        gpu=plan.fleet.gpu.name,
        speeds=plan.fleet.speeds,
        slo_ttft_s=plan.slo.ttft_s,
        slo_tpot_s=plan.slo.tpot_s,
        seeds=plan.seeds,
        search=plan.search,
        rows=rows,
    )


def table(done: Report) -> str:
    """A heading and one line a policy, the best first; ± is half a 95 % interval over seeds."""
    best = sorted(done.rows, key=_rank, reverse=True)
    lines = [_HEAD, *map(_cells, best)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    text = ["  ".join(_aligned(line, widths)).rstrip() for line in lines]
    speeds = ", ".join(f"{speed:g}" for speed in done.speeds)
    what = "highest rate with 90 % served well" if done.search else "at one rate"
    heading = (
        f"{done.load}: {done.requests} requests, recorded at {done.recorded_rate:.2f}/s; {what}\n"
        f"{len(done.speeds)} engines: {done.gpu}; speeds {speeds}\n"
        f"served well: first token within {done.slo_ttft_s:g} s and {1000 * done.slo_tpot_s:g} ms a token; "
        f"seeds {', '.join(map(str, done.seeds))}\n"
    )
    return heading + "\n" + "\n".join(text)


def _rank(row: Row) -> tuple[float, float]:
    return row.rate.mean, row.goodput.mean


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.policy,
        _shown(row.rate, 1, 2),
        _shown(row.goodput, 100, 1),
        _shown(row.ttft_p50_s, 1, 2),
        _shown(row.ttft_p99_s, 1, 1),
        _shown(row.tpot_p99_s, 1000, 0),
        _shown(row.cached_share, 100, 1),
    )


def _shown(value: Interval, scale: float, digits: int) -> str:
    half = f" ±{value.half * scale:.{digits}f}" if value.half else ""
    return f"{value.mean * scale:.{digits}f}{half}"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    first = cells[0].ljust(widths[0])
    return [first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]
