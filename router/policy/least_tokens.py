"""The least to read: fewest prompt tokens without a first token and tokens in memory, for its weight.

A prompt of 50,000 tokens and one of 50 are one request each; in tokens they are not. Blind to caches: it counts the
new request alike everywhere.

Source: the token-count balancing of vLLM's production stack and of SGLang's data-parallel controller.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from router.load import Demand
from router.policy import C


class LeastTokens:
    """Smallest (pending + context + new tokens) / weight; ties to whoever was picked longest ago."""

    wants_facts: ClassVar[bool] = True
    scores: ClassVar[bool] = True

    def __init__(self) -> None:
        self._turn = 0
        self._picked: dict[int, int] = {}

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:  # noqa: ARG002
        """The candidate with the fewest tokens after this request would be added."""
        picked = self._picked
        chosen = candidates[0]
        best = (float("inf"), 0)
        new = demand.input_tokens
        for candidate in candidates:
            load = candidate.load
            tokens = (load.pending_tokens + load.context_tokens + new) / candidate.weight
            if tokens <= best[0]:
                rank = (tokens, picked.get(candidate.order, 0))
                if rank < best:
                    best, chosen = rank, candidate
        self._turn += 1
        picked[chosen.order] = self._turn
        return chosen
