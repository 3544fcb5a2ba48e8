"""A product instead of a sum: prompt tokens to compute here, times requests in the batch. No constants to tune.

The first factor holds what waits as well as what this request adds (the paper's queue term: without it, a burst that
shares a prefix all goes to one target); the second is one higher than the batch, so that an idle target's score still
knows its cache. Scaling either factor changes no comparison, which is why there is nothing to calibrate; a slow
GPU among fast ones it doesn't see, but through the queue that builds up there.

Source: D. Zhang et al., "LMetric: Simple is Better - Multiplication May Be All You Need for LLM Request Scheduling",
arXiv 2603.15202.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from router.load import Demand
from router.policy import C, Turns


class LMetric:
    """Smallest (pending + uncached tokens) x (in flight + 1) / weight."""

    wants_facts: ClassVar[bool] = True

    def __init__(self) -> None:
        self._turns = Turns()

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:  # noqa: ARG002
        """The candidate with the smallest product; ties to whoever was picked longest ago."""
        cached, turns = demand.cached, self._turns
        # A prompt that is wholly cached still has a token to compute.
        tokens = demand.input_tokens + 1

        def product(candidate: C) -> float:
            load = candidate.load
            work = load.pending_tokens + tokens - cached.get(load.slot, 0)
            return work * (load.inflight + 1) / candidate.weight

        return turns.take(turns.least(candidates, product))
