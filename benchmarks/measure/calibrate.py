"""What an engine's steps cost, from the requests of a measured run: what the simulator needs to stand for it.

    step = step_s + request_s x batch + context_s x tokens in memory
           (+ prompt_step_s + prefill_token_s x new tokens + attention_s x new x before, with a prompt)

Nobody sees the steps from outside, but two sums of them:

- an answer of n tokens took n - 1 steps, and in them the prompts of all whose first token came meanwhile were read;
- a request that found the server empty waited for the reading of its own prompt alone.

Both are linear in the costs; batch and context over an answer's time follow from the requests' own times. The fit
minimises relative errors and no cost is below 0. What is left beside the engine (network, tokenizer, router) is
`overhead_s`. How good it all is, the simulator says: it replays the same arrivals, and its percentiles are set beside
the measured ones.

Source: C. Lawson and R. Hanson, "Solving Least Squares Problems", 1974 (non-negative least squares, here by
coordinate descent: there are six unknowns).
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import msgspec

from benchmarks.measure.records import Record
from benchmarks.measure.result import Result, Stage, answered
from benchmarks.simulate.gpu import Gpu
from router.load import Costs

LEAST_REQUESTS = 20
LEAST_LONE = 3
"""Requests that found the server empty; of fewer, the overhead can't be told from prefill."""
SWEEPS = 4000
"""Of the coordinate descent; it stops earlier where nothing moves."""
STILL = 1e-10
GRID = 64
"""Points at which batch and context are looked at within an answer."""
_UNKNOWNS = (
    "step_s", "request_s", "context_s",
    "prompt_step_s", "prefill_token_s", "attention_s", "overhead_s",
)  # fmt: skip


class TooLittle(ValueError):  # noqa: N818 - the name says the state
    """The run doesn't tell the costs; says what is missing."""


class Settings(msgspec.Struct, frozen=True):
    """What can't be seen from outside and has to be said."""

    kv_tokens: int = 1_000_000
    """So large that memory never limits, unless it is known."""
    chunk_tokens: int = 8192
    slots: int | None = None
    """None: as many as were seen writing at once where others waited; else 256."""


class Fit(msgspec.Struct, frozen=True):
    """What came of it."""

    gpu: Gpu
    answers: int
    lone: int
    tpot_error: float
    """Median of |fitted - measured| / measured, over answers."""
    ttft_error: float
    """The same of the requests that found the server empty."""
    notes: list[str] = []


class _Row(msgspec.Struct):
    """One equation: ``sum(factors x costs) = seconds``."""

    factors: tuple[float, ...]
    seconds: float


def calibrate(result: Result, settings: Settings, name: str) -> Fit:
    """The costs that explain ``result`` best. Raises TooLittle."""
    answers: list[_Row] = []
    lone: list[_Row] = []
    slots = 0
    for stage in result.stages:
        seen = _Seen(answered(stage), settings.chunk_tokens)
        answers += seen.answers()
        lone += seen.lone()
        slots = max(slots, seen.slots(stage))
    if len(answers) < LEAST_REQUESTS:
        raise TooLittle(
            f"{len(answers)} answers of two tokens or more; at least {LEAST_REQUESTS} are needed"
        )
    notes = _doubts(answers, lone)
    costs = dict(zip(_UNKNOWNS, solve(answers + lone), strict=True))
    if settings.slots is None and not slots:
        notes.append("nobody waited for a slot in this run: 256 slots are assumed; say --slots")
    gpu = Gpu(
        name=name,
        costs=Costs(
            prefill_token_s=costs["prefill_token_s"],
            attention_s=costs["attention_s"],
            step_s=costs["step_s"],
            request_s=costs["request_s"],
            context_s=costs["context_s"],
        ),
        kv_tokens=settings.kv_tokens,
        chunk_tokens=settings.chunk_tokens,
        slots=settings.slots or slots or 256,
        prompt_step_s=costs["prompt_step_s"],
        overhead_s=costs["overhead_s"],
    )
    found = tuple(costs.values())
    return Fit(gpu, len(answers), len(lone), _error(answers, found), _error(lone, found), notes)


class _Seen:
    """One stage's answers, and who else was there while each was written."""

    def __init__(self, records: Sequence[Record], chunk_tokens: int) -> None:
        self._records = sorted(
            (one for one in records if one.first_s is not None), key=lambda one: one.first_s or 0.0
        )
        self._chunk = chunk_tokens
        self._firsts = [one.first_s or 0.0 for one in self._records]
        self._ends = sorted(one.end_s for one in self._records)
        self._prompts = [_prompt(one, chunk_tokens) for one in self._records]
        self._grid()

    def _grid(self) -> None:
        """Batch and context at even times, so that an answer's means are a look-up away."""
        last = self._ends[-1] if self._ends else 0.0
        lengths = [
            one.end_s - first for one, first in zip(self._records, self._firsts, strict=True)
        ]
        typical = statistics.median(lengths) if lengths else 1.0
        self._tick = max(typical / GRID, last / 200_000, 1e-4)
        size = int(last / self._tick) + 2
        batch, context, slope = [0.0] * (size + 1), [0.0] * (size + 1), [0.0] * (size + 1)
        for one, first in zip(self._records, self._firsts, strict=True):
            begin, end = math.ceil(first / self._tick), math.ceil(one.end_s / self._tick)
            if end <= begin:
                continue
            pace = one.output_tokens / max(one.end_s - first, 1e-9) * self._tick
            batch[begin] += 1
            batch[end] -= 1
            # context grows from the prompt by `pace` each tick: a second difference
            context[begin] += one.input_tokens
            context[end] -= one.input_tokens + pace * (end - begin)
            slope[begin] += pace
            slope[end] -= pace
        self._batches, self._contexts = _sums(batch), _sums_rising(context, slope)

    def answers(self) -> list[_Row]:
        """An equation for each answer of two tokens or more."""
        found = []
        for one, first in zip(self._records, self._firsts, strict=True):
            steps = one.output_tokens - 1
            seconds = one.end_s - first
            if steps < 1 or seconds <= 0:
                continue
            low, high = bisect_right(self._firsts, first), bisect_left(self._firsts, one.end_s)
            read = [sum(part) for part in zip(*self._prompts[low:high], strict=True)] or [0.0] * 3
            batch, context = self._means(first, one.end_s)
            found.append(_Row((steps, steps * batch, steps * context, *read, 0.0), seconds))
        return found

    def _means(self, begin: float, end: float) -> tuple[float, float]:
        low, high = math.ceil(begin / self._tick), math.ceil(end / self._tick)
        if high <= low:
            return 1.0, 0.0
        batch = (self._batches[high] - self._batches[low]) / (high - low)
        return max(1.0, batch), (self._contexts[high] - self._contexts[low]) / (high - low)

    def lone(self) -> list[_Row]:
        """An equation for each request that found the server empty and had its first token before another came."""
        found, busy_until = [], -math.inf
        ordered = sorted(self._records, key=lambda one: one.begun_s)
        for number, one in enumerate(ordered):
            first = one.first_s or 0.0
            following = ordered[number + 1].begun_s if number + 1 < len(ordered) else math.inf
            if one.begun_s >= busy_until and following >= first:
                prompt = _prompt(one, self._chunk)
                steps = float(
                    max(1, math.ceil((one.input_tokens - one.cached_tokens) / self._chunk))
                )
                found.append(_Row((steps, 0.0, 0.0, *prompt, 1.0), first - one.begun_s))
            busy_until = max(busy_until, one.end_s)
        return found

    def slots(self, stage: Stage) -> int:
        """The most answers written at once, if for a tenth of the time that was all that could be; else 0."""
        size = len(self._batches) - 1
        batch = [self._batches[at + 1] - self._batches[at] for at in range(size)]
        most = round(max(batch, default=0.0))
        at_most = sum(value >= most - 0.5 for value in batch) / max(size, 1)
        waited = stage.figures.concurrency > most * 1.1
        return most if waited and at_most > 0.1 else 0


def _prompt(one: Record, chunk_tokens: int) -> tuple[float, float, float]:
    """What reading a prompt takes: steps, tokens, tokens times tokens before."""
    new = max(1, one.input_tokens - one.cached_tokens)
    return float(math.ceil(new / chunk_tokens)), float(new), new * (one.cached_tokens + new / 2)


def _sums(changes: Sequence[float]) -> list[float]:
    """Running sums of what changes so; entry i is the sum before i."""
    level, total, found = 0.0, 0.0, [0.0]
    for change in changes:
        level += change
        total += level
        found.append(total)
    return found


def _sums_rising(jumps: Sequence[float], slopes: Sequence[float]) -> list[float]:
    level, slope, total, found = 0.0, 0.0, 0.0, [0.0]
    for jump, change in zip(jumps, slopes, strict=True):
        level += slope + jump
        slope += change
        total += level
        found.append(total)
    return found


def solve(rows: Sequence[_Row]) -> list[float]:
    """The non-negative costs with the least sum of squared relative errors."""
    count = len(rows[0].factors)
    weighted = [[factor / row.seconds for factor in row.factors] for row in rows if row.seconds > 0]
    gram = [
        [math.fsum(line[i] * line[j] for line in weighted) for j in range(count)]
        for i in range(count)
    ]
    right = [math.fsum(line[i] for line in weighted) for i in range(count)]
    # Unknowns in their own sizes: otherwise a cost of nanoseconds looks like none.
    sizes = [math.sqrt(gram[i][i]) or 1.0 for i in range(count)]
    scaled = [[gram[i][j] / sizes[i] / sizes[j] for j in range(count)] for i in range(count)]
    target = [right[i] / sizes[i] for i in range(count)]
    found = [0.0] * count
    for _ in range(SWEEPS):
        moved = 0.0
        for i in range(count):
            if not gram[i][i]:
                continue
            rest = target[i] - sum(scaled[i][j] * found[j] for j in range(count) if j != i)
            better = max(0.0, rest / scaled[i][i])
            moved = max(moved, abs(better - found[i]))
            found[i] = better
        if moved < STILL:
            break
    return [value / size for value, size in zip(found, sizes, strict=True)]


def _error(rows: Sequence[_Row], costs: Sequence[float]) -> float:
    if not rows:
        return 0.0
    return statistics.median(
        abs(sum(a * b for a, b in zip(row.factors, costs, strict=True)) / row.seconds - 1)
        for row in rows
    )


def _doubts(answers: Sequence[_Row], lone: Sequence[_Row]) -> list[str]:
    """What the run is too narrow to tell."""
    notes = []
    if len(lone) < LEAST_LONE:
        notes.append(
            f"{len(lone)} requests found the server empty: prefill and overhead are guesses; "
            "add a stage with --concurrency 1 or a low rate"
        )
    elif _narrow([row.factors[4] for row in lone]):
        notes.append("prompts are all about as long: overhead and prefill can't be told apart")
    if _narrow([row.factors[1] / row.factors[0] for row in answers]):
        notes.append("the batch was always about as large: its cost can't be told; measure a sweep")
    return notes


def _narrow(values: Sequence[float]) -> bool:
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 20], ordered[-1 - len(ordered) // 20]
    return high < 1.5 * low
