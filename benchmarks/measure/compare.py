"""Two results side by side: what changed, by how much, and whether that is more than noise.

Stages are paired by name; single stages whatever they are called. A change counts as real where the 95 % interval of
a ratio, bootstrapped over batches of consecutive requests, leaves 1 out: batches, because requests of a run wait for
each other. Beside it stands the p of a Mann-Whitney test over requests, as if each were alone; it is smaller than it
should be, so that a large one is the stronger word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from benchmarks.measure.figures import Pace, paces
from benchmarks.measure.numbers import Ratio, mann_whitney, quantile, ratio
from benchmarks.measure.records import UNFINISHED, Record
from benchmarks.measure.result import Result, Stage, answered, measured
from benchmarks.measure.slo import Slo

Values = Callable[[Sequence[Record]], list[float]]
FEW = 20
"""Requests; below, a 99th percentile and its interval are one request's luck."""
_TIMES: tuple[tuple[str, Values], ...] = (
    ("TTFT", lambda records: [one.ttft_s for one in records if one.ttft_s is not None]),
    ("TPOT", lambda records: [one.tpot_s for one in records if one.tpot_s is not None]),
    ("E2E", lambda records: [one.e2e_s for one in records]),
)


class Change(msgspec.Struct, frozen=True):
    """One figure in both results."""

    stage: str
    figure: str
    one: float
    other: float
    unit: str
    ratio: Ratio | None = None
    p: float | None = None
    """Mann-Whitney's, of the whole distribution."""

    @property
    def verdict(self) -> str:
        """In a word."""
        if self.ratio is None:
            return ""
        return "differs" if self.ratio.differs else "noise"


class Unlike(ValueError):  # noqa: N818 - the name says the state
    """The results have nothing that could be compared."""


def compare(one: Result, other: Result) -> list[Change]:
    """Every change, stage by stage. Raises Unlike."""
    changes = []
    for left, right in pairs(one, other):
        name = left.name if left.name == right.name else f"{left.name} → {right.name}"
        changes += _times(name, left, right)
        changes += _shares(name, left, right, one.slo)
    return changes


def pairs(one: Result, other: Result) -> list[tuple[Stage, Stage]]:
    """The stages that belong together. Raises Unlike."""
    if len(one.stages) == len(other.stages) == 1:
        return [(one.stages[0], other.stages[0])]
    named = {stage.name: stage for stage in other.stages}
    found = [(stage, named[stage.name]) for stage in one.stages if stage.name in named]
    if not found:
        names = [", ".join(stage.name for stage in result.stages) for result in (one, other)]
        raise Unlike(f"no stage is in both: {names[0]}; {names[1]}")
    return found


def _times(name: str, left: Stage, right: Stage) -> list[Change]:
    changes = []
    samples = answered(left), answered(right)
    for figure, values in _TIMES:
        one, other = (values(records) for records in samples)
        if not one or not other:
            continue
        enough = min(len(one), len(other)) >= FEW
        p = mann_whitney(one, other) if enough else None
        for label, share in (("p50", 0.5), ("p99", 0.99)):
            measure = quantile(share)
            found = ratio(one, other, measure) if enough else None
            changes.append(
                Change(name, f"{figure} {label}", measure(one), measure(other), "s", found, p)
            )
    return changes


def _rates(name: str, left: Stage, right: Stage) -> list[Change]:
    one, other = left.figures, right.figures
    enough = min(one.ok, other.ok) >= FEW
    parts = [_paces(stage) if enough else [] for stage in (left, right)]
    answers = [[part.answers for part in few] for few in parts]
    tokens = [[part.tokens for part in few] for few in parts]
    return [
        Change(name, "answers", one.achieved_rate, other.achieved_rate, "/s", _mean_ratio(answers)),
        Change(name, "output", one.output_rate, other.output_rate, "tokens/s", _mean_ratio(tokens)),
    ]


def _paces(stage: Stage) -> list[Pace]:
    return paces(measured(stage), stage.warmup_s, stage.warmup_s + stage.figures.window_s)


def _mean_ratio(samples: Sequence[Sequence[float]]) -> Ratio | None:
    one, other = samples
    return ratio(one, other, _mean) if one and other else None


def _shares(name: str, left: Stage, right: Stage, slo: Slo) -> list[Change]:
    changes = _rates(name, left, right)
    marks = [
        [float(slo.good(one)) for one in measured(stage) if one.outcome != UNFINISHED]
        for stage in (left, right)
    ]
    if all(len(one) >= FEW for one in marks):
        found = ratio(marks[0], marks[1], _mean)
        changes.append(
            Change(name, "good", 100 * _mean(marks[0]), 100 * _mean(marks[1]), "%", found)
        )
    return changes


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
