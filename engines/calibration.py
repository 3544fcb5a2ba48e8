"""What work costs on an engine, measured through its own contract, in seconds: any engine, any machine.

Prompts of made-up words, which no cache has, are timed to their first token: that gives the two figures of a prompt.
Answers are timed token by token, one alone, many at once, and a few over long prompts: that gives the three of a step.
A line through such points is exact where the model behind it is right, and the best there is where it isn't; so
errors count by their share, not by their seconds.

What was measured is kept in a file by engine, machine and settings, since neither changes from one start to the next.

Source: docs/balancing.md for the model.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec
from msgspec import Struct

from engines.base import (
    Delta,
    Engine,
    EngineError,
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

ANSWER_TOKENS = 24
LONG_SHARE = 0.5
"""Of the context, for answers over long prompts."""

WORD_TOKENS = 3
"""Of a made-up word, about; the true count comes with the answer."""

MIN_COST_S = 1e-9
"""Costs are compared by their ratios, so the two that everything is measured in can't be nothing."""


_LONG = msgspec.json.encode(
    {
        "type": "json_schema",
        "json_schema": {
            "name": "long",
            "schema": {"type": "array", "items": {"type": "boolean"}, "minItems": ANSWER_TOKENS},
        },
    }
)


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


async def measure(engine: Engine, info: EngineInfo) -> WorkCosts:
    """Time an idle engine. Raises EngineError, or Unmeasurable."""
    return await _Bench(engine, info).run()


class _Bench:
    def __init__(self, engine: Engine, info: EngineInfo) -> None:
        self._engine = engine
        self._info = info
        self._rng = random.Random()  # noqa: S311 - words that were never said before
        self._tokens_per_word = float(WORD_TOKENS)

    async def run(self) -> WorkCosts:
        room = self._info.context_tokens - ANSWER_TOKENS
        await self._time(min(64, room // 2))  # the first request of a process pays for much else
        prefills = []
        for size in PROMPT_TOKENS:
            if size > room * 0.8:
                break
            prefill, _ = await self._time(size)
            prefills.append(prefill)
            if prefill.seconds > SLOW_S:
                break
        slots = max(1, self._info.slots)
        few = min(4, slots)
        long = int(min(room * LONG_SHARE, self._info.kv_tokens / few * LONG_SHARE))
        short = min(64, room // 2)
        steps = [
            await self._together(requests, size)
            for requests, size in {(1, short), (few, short), (slots, short), (few, long)}
        ]
        return fit(prefills, steps)

    async def _time(self, size: int, *, held: bool = False) -> tuple[Prefill, list[float]]:
        """Ask once over a prompt of about so many tokens; returns when each token came, too."""
        words = max(1, int(size / self._tokens_per_word))
        began = time.perf_counter()
        at: list[float] = []
        usage = Usage(0, 0)
        async with aclosing(self._engine.generate(self._request(words, held=held))) as events:
            async for event in events:
                if isinstance(event, Delta):
                    at.append(time.perf_counter())
                elif isinstance(event, Usage):
                    usage = event
        if not at:
            raise Unmeasurable("an answer had no token")
        self._tokens_per_word = max(1.0, usage.input_tokens / words)
        return Prefill(usage.input_tokens, at[0] - began), at

    async def _together(self, requests: int, size: int) -> Steps:
        """Time the steps while all of them are being answered."""
        for attempt in range(4):
            held = attempt >= 2  # to a long answer, for it stops of itself
            timed = await asyncio.gather(*(self._time(size, held=held) for _ in range(requests)))
            begin = max(at[0] for _, at in timed)
            end = min(at[-1] for _, at in timed)
            gaps = [
                (within[-1] - within[0]) / (len(within) - 1)
                for within in ([t for t in at if begin <= t <= end] for _, at in timed)
                if len(within) > 3
            ]
            if gaps:
                context = sum(prefill.tokens for prefill, _ in timed)
                return Steps(requests, context, max(min(gaps), MIN_COST_S))
        raise Unmeasurable(f"{requests} answers at a time were too short")

    def _request(self, words: int, *, held: bool) -> GenerateRequest:
        letters = "abcdefghijklmnopqrstuvwxyz"
        text = " ".join("".join(self._rng.choices(letters, k=6)) for _ in range(words))
        return GenerateRequest(
            messages=b"[]",
            prompt=text,
            max_tokens=ANSWER_TOKENS,
            sampling=Sampling(temperature=1),
            response_format=_LONG if held else None,
        )


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


# What was measured before.


def key_of(*parts: object) -> str:
    """Return the name under which costs are kept: other parts, another name."""
    return hashlib.blake2s(repr(parts).encode(), digest_size=10).hexdigest()


def folder() -> Path:
    """Where costs are kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nenya" / "costs"


def remembered(key: str) -> WorkCosts | None:
    """Return what was measured under that name; None where nothing can be read."""
    try:
        return msgspec.json.decode((folder() / f"{key}.json").read_bytes(), type=WorkCosts)
    except (OSError, RuntimeError, msgspec.MsgspecError):  # RuntimeError: there is no home
        return None


def remember(key: str, costs: WorkCosts) -> None:
    """Keep the costs. A folder that can't be written to costs a measurement at the next start, nothing else."""
    try:
        at = folder()
        at.mkdir(parents=True, exist_ok=True)
        draft = at / f".{key}.{os.getpid()}"
        draft.write_bytes(msgspec.json.encode(costs))
        draft.replace(at / f"{key}.json")
    except (OSError, RuntimeError):
        return


async def known(engine: Engine, info: EngineInfo, key: str) -> WorkCosts | None:
    """Return what is remembered, or measured and remembered now; None where it can't be measured.

    Raises EngineError("died") where measuring was too much for it.
    """
    costs = remembered(key)
    if costs is not None:
        return costs
    try:
        costs = await measure(engine, info)
    except Unmeasurable:
        return None
    except EngineError as error:
        if error.kind == "died":
            raise
        return None
    remember(key, costs)
    return costs
