"""Whether calibrated costs are any good: the simulator replays a measured run's arrivals with them."""

from __future__ import annotations

import msgspec

from benchmarks.measure.records import OK, Record
from benchmarks.measure.result import Result, Stage, measured
from benchmarks.measure.simulated import records_of
from benchmarks.simulate.gpu import Gpu
from benchmarks.simulate.load import Load, Request
from benchmarks.simulate.measures import percentile
from benchmarks.simulate.run import Fleet, simulate

BLOCK_TOKENS = 16
"""Memory is counted in pages of this size: vLLM's, and fine enough for engines with larger ones."""


class Checked(msgspec.Struct, frozen=True):
    """A stage's TTFT, TPOT and E2E, each at its median and 90th percentile; seconds."""

    stage: str
    measured: tuple[float, ...]
    simulated: tuple[float, ...]


def check(result: Result, gpu: Gpu) -> list[Checked]:
    """Each stage beside its simulation."""
    found = []
    for stage in result.stages:
        load = _load(stage)
        if load is not None:
            served = simulate(Fleet(gpu, (1.0,)), load, "round_robin", faster=1.0, seed=1)
            ok = [one for one in measured(stage) if one.outcome == OK]
            found.append(Checked(stage.name, _points(ok), _points(records_of(served))))
    return found


def _load(stage: Stage) -> Load | None:
    """What came to the server, when; prompts less what it remembered, as nobody knows what that was."""
    requests = tuple(
        Request(one.begun_s, max(1, one.input_tokens - one.cached_tokens), one.output_tokens)
        for one in sorted(measured(stage), key=lambda one: one.begun_s)
        if one.outcome == OK and one.output_tokens > 0
    )
    return Load(stage.name, requests, BLOCK_TOKENS) if len(requests) > 1 else None


def _points(records: list[Record]) -> tuple[float, ...]:
    found: list[float] = []
    for values in (
        [one.first_s - one.begun_s for one in records if one.first_s is not None],
        [one.tpot_s for one in records if one.tpot_s is not None],
        [one.end_s - one.begun_s for one in records if one.outcome == OK],
    ):
        ordered = sorted(values) or [0.0]
        found += [percentile(ordered, 0.5), percentile(ordered, 0.9)]
    return tuple(found)
