"""Results for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from benchmarks.simulate.compare import Plan, Row
from benchmarks.simulate.measures import Interval
from benchmarks.simulate.replicas import Replicas
from benchmarks.tables import aligned


class Column(msgspec.Struct, frozen=True):
    """One figure of every row."""

    name: str
    field: str
    """Of the row: an Interval."""
    scale: float
    """From the figure's own unit to the name's."""
    digits: int
    """Behind the point."""


_COLUMNS = (
    Column("req/s", "rate", 1, 2),
    Column("goodput %", "goodput", 100, 1),
    Column("TTFT p50 s", "ttft_p50_s", 1, 2),
    Column("TTFT p99 s", "ttft_p99_s", 1, 1),
    Column("TPOT p99 ms", "tpot_p99_s", 1000, 0),
    Column("cached %", "cached_share", 100, 1),
)


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
    text = by_policy(best, _COLUMNS)
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


class Compared(Protocol):
    """A row: a policy, and fields that are figures."""

    @property
    def policy(self) -> str:
        """Its name."""


def by_policy(rows: Iterable[Compared], columns: Sequence[Column]) -> str:
    """A line for each of ``rows``: its policy and its figures."""
    cells = [
        (row.policy, *(_shown(getattr(row, one.field), one) for one in columns)) for row in rows
    ]
    return aligned(("policy", *(one.name for one in columns)), cells)


def _shown(value: Interval, column: Column) -> str:
    """A mean, and half its interval if it has one."""
    scale, digits = column.scale, column.digits
    half = f" ±{value.half * scale:.{digits}f}" if value.half else ""
    return f"{value.mean * scale:.{digits}f}{half}"


def told(replicas: Replicas) -> str:
    """How many routers there are, where there are several."""
    if replicas.count == 1:
        return ""
    how = f"told of each other every {1000 * replicas.sync_s:g} ms" if replicas.sync_s else "apart"
    return f"; {replicas.count} routers, {how}"
