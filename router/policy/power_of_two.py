"""Two at random, the less busy of them: nearly as good as asking everybody, and no herd.

Source: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001; tower's `balance/p2c`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from router.load import Demand
from router.policy import C


class PowerOfTwo:
    """The smaller (in flight + 1) / weight of two that differ."""

    wants_facts: ClassVar[bool] = False

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:  # noqa: ARG002
        """The better of two random candidates."""
        count = len(candidates)
        if count == 1:
            return candidates[0]
        drawn = int(rng.random() * (count * (count - 1)))  # which of all pairs
        first = candidates[drawn % count]
        second = candidates[(drawn + 1 + drawn // count) % count]
        if (second.load.inflight + 1) * first.weight < (first.load.inflight + 1) * second.weight:
            return second
        return first
