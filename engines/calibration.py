"""What work costs on an engine, measured through its own contract, in seconds: any engine, any machine.

Prompts of made-up words, which no cache has, are timed to their first token: that gives the two figures of a prompt.
Answers are timed token by token, one alone, many at once, and a few over long prompts: that gives the three of a step.
A line through such points is exact where the model behind it is right, and the best there is where it isn't; so
errors count by their share, not by their seconds.

Where it is kept from one start to the next: engines.measured.

Source: docs/balancing.md for the model.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing

import msgspec
from msgspec import Struct

from engines.base import (
    Delta,
    Engine,
    EngineInfo,
    GenerateRequest,
    Sampling,
    Usage,
    WorkCosts,
)

PROMPT_TOKENS = (256, 1024, 2048, 4096, 8192)
"""Below, the first step's own time hides the prompt's; above, nothing new is learned."""

SLOW_S = 2.0
"""A prompt that took longer is the last: a start should not take minutes on a slow machine."""

PROMPTS_ANSWER_TOKENS = 8
"""Behind a prompt that is timed: some of its tokens may be no text."""

ANSWER_TOKENS = (24, 96, 384, 1536)
"""Tried in turn, until all answers are being written at the same time: the first may be over before the last one's
prompt is read."""

HELD_FROM = 1
"""From this try on, answers are held to their length by a format, for they may stop of themselves."""

SILENT_TRIES = 4
"""A model may end at once what begins with words that mean nothing; other words are tried."""

STEPS = 3
"""That an answer must share with all others, at least."""

BUSY_TOKENS = 512
"""Of the cache for each of many requests; with less they would wait for room."""

LONG_SHARE = 0.5
"""Of the context, for answers over long prompts."""

LONG_S = 10.0
"""To read these prompts, all together: a processor would take minutes for what a GPU does in a second."""

WORD_TOKENS = 3
"""Of a made-up word, about; the true count comes with the answer."""

MIN_COST_S = 1e-9
"""Costs are compared by their ratios, so the two that everything is measured in can't be nothing."""


class Prefill(Struct, frozen=True):
    """A prompt: its tokens, and the seconds to its first token."""

    tokens: int
    seconds: float


class Steps(Struct, frozen=True):
    """Answers under way: how many, over how many tokens together, and the seconds of a step."""

    requests: int
    context_tokens: int
    seconds: float


class Unmeasurable(Exception):  # noqa: N818 - the name says the state
    """The engine answered too little to be timed."""


Told = Callable[[str], None]


class Measurement(Struct, frozen=True):
    """What was timed, and the costs that come closest to it."""

    costs: WorkCosts
    prefills: tuple[Prefill, ...]
    steps: tuple[Steps, ...]

    @property
    def error(self) -> float:
        """The share by which the worst of what was timed is off."""
        costs = self.costs
        # What doesn't grow with the prompt is no cost of its tokens, so the shortest one says what that is.
        of_prompts = [
            (p, costs.prefill_token_s * p.tokens + costs.attention_s * p.tokens**2 / 2)
            for p in self.prefills
        ]
        rest = min(p.seconds - fitted for p, fitted in of_prompts)
        errors = [abs(fitted + rest - p.seconds) / p.seconds for p, fitted in of_prompts]
        for one in self.steps:
            fitted = (
                costs.step_s + costs.request_s * one.requests + costs.context_s * one.context_tokens
            )
            errors.append(abs(fitted - one.seconds) / one.seconds)
        return max(errors)


async def measure(
    engine: Engine,
    info: EngineInfo,
    told: Told = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Measurement:
    """Time an idle engine, saying what comes out. Raises EngineError, or Unmeasurable."""
    return await _Bench(engine, info, told, clock).run()


class _Bench:
    def __init__(
        self, engine: Engine, info: EngineInfo, told: Told, clock: Callable[[], float]
    ) -> None:
        self._engine = engine
        self._info = info
        self._told = told
        self._clock = clock
        self._rng = random.Random()  # noqa: S311 - words that were never said before
        self._tokens_per_word = float(WORD_TOKENS)

    async def run(self) -> Measurement:
        info = self._info
        room = info.context_tokens - ANSWER_TOKENS[0]
        short = min(64, room // 2)
        await self._time(short, PROMPTS_ANSWER_TOKENS)  # the first request pays for much else
        prefills = []
        for size in PROMPT_TOKENS:
            if size > room * 0.8:
                break
            prefill, _ = await self._time(size, PROMPTS_ANSWER_TOKENS)
            self._told(f"a prompt of {prefill.tokens} tokens takes {prefill.seconds:.4f} s")
            prefills.append(prefill)
            if prefill.seconds > SLOW_S:
                break
        slots = max(1, info.slots)
        few = min(4, slots)
        busy = max(few, min(slots, info.kv_tokens // BUSY_TOKENS))
        fast = LONG_S * prefills[-1].tokens / prefills[-1].seconds / few if prefills else room
        long = max(short, int(min(min(room, info.kv_tokens / few) * LONG_SHARE, fast)))
        loads = dict.fromkeys([(1, short), (few, short), (busy, short), (few, long)])
        steps = [await self._together(requests, size) for requests, size in loads]
        return Measurement(fit(prefills, steps), tuple(prefills), tuple(steps))

    async def _time(
        self, size: int, answer_tokens: int, *, held: bool = False
    ) -> tuple[Prefill, list[float]]:
        """Ask once over a prompt of about so many tokens; returns when each token came, too."""
        words = max(1, int(size / self._tokens_per_word))
        for _ in range(SILENT_TRIES):
            request = self._request(words, answer_tokens, held=held)
            began = self._clock()
            at: list[float] = []
            usage = Usage(0, 0)
            async with aclosing(self._engine.generate(request)) as events:
                async for event in events:
                    if isinstance(event, Delta):
                        at.append(self._clock())
                    elif isinstance(event, Usage):
                        usage = event
            if at:
                self._tokens_per_word = max(1.0, usage.input_tokens / words)
                return Prefill(usage.input_tokens, at[0] - began), at
        raise Unmeasurable("an answer had no token")

    async def _together(self, requests: int, size: int) -> Steps:
        """Time the steps while all of them are being answered."""
        info = self._info
        room = min(info.context_tokens, info.kv_tokens // requests) - size
        for attempt, wanted in enumerate(ANSWER_TOKENS):
            tokens, held = max(STEPS, min(wanted, room)), attempt >= HELD_FROM
            timed = await asyncio.gather(
                *(self._time(size, tokens, held=held) for _ in range(requests))
            )
            begin = max(at[0] for _, at in timed)
            end = min(at[-1] for _, at in timed)
            gaps = [
                (within[-1] - within[0]) / (len(within) - 1)
                for within in ([t for t in at if begin <= t <= end] for _, at in timed)
                if len(within) > STEPS
            ]
            if gaps:
                context = sum(prefill.tokens for prefill, _ in timed)
                step = Steps(requests, context, max(min(gaps), MIN_COST_S))
                answers = "one answer" if requests == 1 else f"{requests} answers"
                self._told(f"a step of {answers} over {context} tokens takes {step.seconds:.5f} s")
                return step
            if tokens == room:
                break
        raise Unmeasurable(f"{requests} answers at a time were too short")

    def _request(self, words: int, answer_tokens: int, *, held: bool) -> GenerateRequest:
        letters = "abcdefghijklmnopqrstuvwxyz"
        text = " ".join("".join(self._rng.choices(letters, k=6)) for _ in range(words))
        return GenerateRequest(
            messages=b"[]",
            prompt=text,
            max_tokens=answer_tokens,
            sampling=Sampling(temperature=1),
            response_format=_long(answer_tokens) if held else None,
        )


def _long(tokens: int) -> bytes:
    """A format whose answers have at least so many tokens."""
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": tokens}
    wanted = {"type": "json_schema", "json_schema": {"name": "long", "schema": schema}}
    return msgspec.json.encode(wanted)


def fit(prefills: Sequence[Prefill], steps: Sequence[Steps]) -> WorkCosts:
    """The costs that come closest to what was timed. Raises Unmeasurable where nothing was."""
    if not prefills or not steps:
        raise Unmeasurable("nothing was timed")
    _, token_s, attention_s = (
        _least_squares(  # what doesn't grow with the prompt is no cost of its tokens
            [[1, p.tokens, p.tokens**2 / 2] for p in prefills], [p.seconds for p in prefills]
        )
    )
    step_s, request_s, context_s = _least_squares(
        [[1, s.requests, s.context_tokens] for s in steps], [s.seconds for s in steps]
    )
    return WorkCosts(
        prefill_token_s=max(token_s, MIN_COST_S),
        attention_s=attention_s,
        step_s=max(step_s, MIN_COST_S),
        request_s=request_s,
        context_s=context_s,
    )


def _least_squares(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Coefficients, none below 0, with the least sum of squared relative errors."""
    weighted = [[x / value for x in row] for row, value in zip(rows, values, strict=True)]
    used = list(range(len(rows[0])))
    while True:
        found = _solve(weighted, used[: len(rows)])
        if found is not None and all(x >= 0 for x in found):
            result = [0.0] * len(rows[0])
            for column, x in zip(used, found, strict=False):
                result[column] = x
            return result
        if len(used) == 1:
            return [0.0] * len(rows[0])
        # Noise makes a small cost negative; without it the others take its share.
        worst = -1 if found is None else min(range(len(found)), key=found.__getitem__)
        del used[worst]


def _solve(rows: Sequence[Sequence[float]], columns: Sequence[int]) -> list[float] | None:
    """Solve the normal equations for all values 1, by elimination; None where they have no one solution."""
    scale = [max(abs(row[c]) for row in rows) or 1.0 for c in columns]
    a = [[row[c] / s for c, s in zip(columns, scale, strict=True)] for row in rows]
    size = len(columns)
    m = [
        [sum(row[i] * row[j] for row in a) for j in range(size)] + [sum(row[i] for row in a)]
        for i in range(size)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(m[r][i]))
        if abs(m[pivot][i]) < 1e-12:
            return None
        m[i], m[pivot] = m[pivot], m[i]
        for r in range(size):
            if r != i:
                factor = m[r][i] / m[i][i]
                m[r] = [x - factor * y for x, y in zip(m[r], m[i], strict=True)]
    return [m[i][size] / m[i][i] / scale[i] for i in range(size)]
