"""Results for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from benchmarks.simulate.compare import Plan, Row
from benchmarks.simulate.measures import Interval
from benchmarks.simulate.replicas import Replicas

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
    replicas: Replicas
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
        replicas=plan.fleet.replicas,
        rows=rows,
    )


def table(done: Report) -> str:
    """A heading and one line a policy, the best first; ± is half a 95 % interval over seeds."""
    best = sorted(done.rows, key=_rank, reverse=True)
    text = aligned([_HEAD, *map(_cells, best)])
    speeds = ", ".join(f"{speed:g}" for speed in done.speeds)
    what = "highest rate with 90 % served well" if done.search else "at one rate"
    heading = (
        f"{done.load}: {done.requests} requests, recorded at {done.recorded_rate:.2f}/s; {what}\n"
        f"{len(done.speeds)} engines: {done.gpu}; speeds {speeds}{told(done.replicas)}\n"
        f"served well: first token within {done.slo_ttft_s:g} s and {1000 * done.slo_tpot_s:g} ms a token; "
        f"seeds {', '.join(map(str, done.seeds))}\n"
    )
    return f"{heading}\n{text}"


def _rank(row: Row) -> tuple[float, float]:
    return row.rate.mean, row.goodput.mean


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.policy,
        shown(row.rate, 1, 2),
        shown(row.goodput, 100, 1),
        shown(row.ttft_p50_s, 1, 2),
        shown(row.ttft_p99_s, 1, 1),
        shown(row.tpot_p99_s, 1000, 0),
        shown(row.cached_share, 100, 1),
    )


def shown(value: Interval, scale: float, digits: int) -> str:
    """A mean, and half its interval if it has one."""
    half = f" ±{value.half * scale:.{digits}f}" if value.half else ""
    return f"{value.mean * scale:.{digits}f}{half}"


def told(replicas: Replicas) -> str:
    """How many routers there are, where there are several."""
    if replicas.count == 1:
        return ""
    how = f"told of each other every {1000 * replicas.sync_s:g} ms" if replicas.sync_s else "apart"
    return f"; {replicas.count} routers, {how}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (
        [line[0].ljust(widths[0])]
        + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        for line in lines
    )
    return "\n".join("  ".join(row).rstrip() for row in rows)
