"""Made-up loads, for what no trace shows: nothing shared at all, or sessions that grow turn by turn."""

from __future__ import annotations

import random

from benchmarks.simulate.load import Load, Request

BLOCK = 512
INPUT_MEAN, OUTPUT_MEAN = 2_000, 200
"""Between Azure's conversations (1,155 and 211) and its code (2,048 and 28)."""
SYSTEM_BLOCKS = 4
"""A system prompt of 2,048 tokens, as agents have."""
TURNS = 6
THINK_S = 20.0
"""Mean pause between a session's turns."""


def poisson(count: int, rate: float, seed: int) -> Load:
    """``count`` unrelated requests at ``rate`` a second, exponential lengths."""
    rng = random.Random(seed)
    at, requests = 0.0, []
    for _ in range(count):
        at += rng.expovariate(rate)
        requests.append(Request(at, _length(rng, INPUT_MEAN), _length(rng, OUTPUT_MEAN)))
    return Load("poisson", tuple(requests), BLOCK)


def sessions(count: int, rate: float, seed: int) -> Load:
    """About ``count`` requests of sessions that share a system prompt and carry their turns along."""
    rng = random.Random(seed)
    requests: list[Request] = []
    start, name = 0.0, 0
    while len(requests) < count:
        start += rng.expovariate(rate / TURNS)
        at, tokens = start, SYSTEM_BLOCKS * BLOCK
        blocks = tuple(range(SYSTEM_BLOCKS))
        for _ in range(TURNS):
            tokens += _length(rng, INPUT_MEAN // 4)
            while len(blocks) < tokens // BLOCK:
                name += 1
                blocks = (*blocks, SYSTEM_BLOCKS + name)
            output = _length(rng, OUTPUT_MEAN)
            requests.append(Request(at, tokens, output, blocks))
            tokens += output
            at += rng.expovariate(1 / THINK_S)
    requests.sort(key=lambda one: one.at)
    return Load("sessions", tuple(requests[:count]), BLOCK)


def _length(rng: random.Random, mean: int) -> int:
    return 1 + int(rng.expovariate(1 / mean))
