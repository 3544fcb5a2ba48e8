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
from router.policy import C, Turns


class LeastTokens:
    """Smallest (pending + context + new tokens) / weight; ties to whoever was picked longest ago."""

    wants_facts: ClassVar[bool] = True

    def __init__(self) -> None:
        self._turns = Turns()

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:  # noqa: ARG002
        """The candidate with the fewest tokens after this request would be added."""
        new, turns = demand.input_tokens, self._turns

        def tokens(candidate: C) -> float:
            load = candidate.load
            return (load.pending_tokens + load.context_tokens + new) / candidate.weight

        return turns.take(turns.least(candidates, tokens))
