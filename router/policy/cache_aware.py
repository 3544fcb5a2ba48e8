"""Where most of the prompt lies already, unless that one is far busier than the idlest; else the least busy.

SGLang's rule, but for its gate: there one hot worker switches affinity off for everybody, which throws the caches
away just when they are needed. Here only a holder that is itself too busy is passed over.

Source: SGLang's router, policy `cache_aware`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from router.load import Demand
from router.policy import C, Turns

MATCH_SHARE = 0.3
"""SGLang's cache_threshold: below it a prefix is a common system prompt, and says nothing about where to go."""
BUSIER_BY = 64
"""SGLang's balance_abs_threshold, in requests."""
BUSIER_TIMES = 1.5
"""SGLang's balance_rel_threshold."""


class CacheAware:
    """The deepest holder, or the least in flight for its weight."""

    wants_facts: ClassVar[bool] = True

    def __init__(self) -> None:
        self._turns = Turns()

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:  # noqa: ARG002
        """The holder of the longest beginning, where that is worth it."""
        turns = self._turns
        chosen = turns.least(candidates, lambda one: (one.load.inflight + 1) / one.weight)
        if demand.cached:
            chosen = self._holder(candidates, demand, chosen)
        return turns.take(chosen)

    @staticmethod
    def _holder(candidates: Sequence[C], demand: Demand, idlest: C) -> C:
        chosen, deepest = idlest, MATCH_SHARE * demand.input_tokens
        least = idlest.load.inflight
        for candidate in candidates:
            tokens = demand.cached.get(candidate.load.slot, 0)
            if tokens <= deepest:
                continue
            busy = candidate.load.inflight / candidate.warmth
            if busy - least <= BUSIER_BY or busy <= BUSIER_TIMES * least:
                chosen, deepest = candidate, tokens
        return chosen
