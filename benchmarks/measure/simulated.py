"""A simulation's requests as records, so that it is shown, written and compared like what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from benchmarks.measure.figures import figures
from benchmarks.measure.records import OK, Record, columns
from benchmarks.measure.result import Capacity, Result, Stage
from benchmarks.measure.slo import Limit, Slo
from benchmarks.simulate.compare import Plan, Row
from benchmarks.simulate.run import Served, simulate
from router.config.schema import Policy

NEVER_FITS = "400"
"""What a server answers to a request that its memory can't hold."""


def result_of(plan: Plan, rows: Iterable[Row], version: str) -> Result:
    """The result of a comparison: a stage for each policy, at its rate, with the first seed."""
    slo = Slo((Limit("ttft", plan.slo.ttft_s), Limit("tpot", plan.slo.tpot_s)))
    listed = list(rows)
    best = max((row.rate.mean for row in listed), default=0.0)
    speeds = plan.fleet.speeds
    engines = f"{len(speeds)} engines" if len(speeds) > 1 else "1 engine"
    if set(speeds) != {1.0}:
        engines += f", speeds {', '.join(f'{speed:g}' for speed in speeds)}"
    return Result(
        kind="simulated",
        profile="capacity" if plan.search else "replay",
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        version=version,
        target=engines,
        model=plan.fleet.gpu.name,
        load=f"{plan.load.name}: {len(plan.load.requests)} requests",
        slo=slo,
        seed=plan.seeds[0],
        stages=[_stage(plan, row, slo) for row in listed],
        capacity=Capacity(best, None) if plan.search else None,
    )


def _stage(plan: Plan, row: Row, slo: Slo) -> Stage:
    rate = row.rate.mean or plan.rate
    policy = msgspec.convert(row.policy, Policy)
    served = simulate(
        plan.fleet, plan.load, policy, faster=rate / plan.load.rate, seed=plan.seeds[0]
    )
    records = records_of(served)
    span = max(one.due_s for one in records)
    return Stage(
        name=row.policy,
        figures=figures(records, slo, duration_s=span),
        rate=rate,
        met=slo.met(records),
        requests=columns(records),
    )


def records_of(served: Iterable[Served]) -> list[Record]:
    """What a client of the simulation would have seen."""
    found = []
    for number, one in enumerate(sorted(served, key=lambda one: one.at)):
        record = Record(number, one.at, one.input_tokens, one.output_tokens, sent_s=one.at)
        record.input_tokens, record.cached_tokens = one.input_tokens, one.cached_tokens
        if math.isfinite(one.ttft_s):
            record.first_s = one.at + one.ttft_s
            record.end_s = record.first_s + one.tpot_s * (one.output_tokens - 1)
            record.output_tokens = record.pieces = one.output_tokens
            record.by_usage, record.outcome = True, OK
        else:
            record.end_s, record.outcome = one.at, NEVER_FITS
        found.append(record)
    return found
