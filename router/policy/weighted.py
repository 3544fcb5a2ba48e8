"""In turn, in proportion to weights, and evenly: 5:1:1 gives a a b a c a a, never a a a a a b c.

Source: nginx, "Upstream: smooth weighted round-robin balancing" (commit 52327e0627f4).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from router.load import Demand
from router.policy import C


class Weighted:
    """Each pick raises everyone's credit by its weight; the richest is picked and pays the sum."""

    wants_facts: ClassVar[bool] = False
    scores: ClassVar[bool] = False

    def __init__(self) -> None:
        self._credit: dict[int, float] = {}

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:  # noqa: ARG002
        """The candidate that is furthest behind its share."""
        credit = self._credit
        total = 0.0
        chosen = candidates[0]
        best = float("-inf")
        for candidate in candidates:
            weight = candidate.weight
            total += weight
            raised = credit.get(candidate.order, 0.0) + weight
            credit[candidate.order] = raised
            if raised > best:
                best, chosen = raised, candidate
        credit[chosen.order] -= total
        return chosen
