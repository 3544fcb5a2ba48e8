"""The least busy: fewest requests in flight for its weight, counted with the one to come.

Ties, and on an idle pool everything is a tie, go to whoever was picked longest ago, so that the first in the list
doesn't get all the traffic of a quiet hour.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from router.load import Demand
from router.policy import C


class LeastInflight:
    """Smallest (in flight + 1) / weight."""

    wants_facts: ClassVar[bool] = False
    scores: ClassVar[bool] = True

    def __init__(self) -> None:
        self._turn = 0
        self._picked: dict[int, int] = {}

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:  # noqa: ARG002
        """The candidate with the least load after this request would be added."""
        picked = self._picked
        chosen = candidates[0]
        best = (float("inf"), 0)
        for candidate in candidates:
            load = (candidate.load.inflight + 1) / candidate.weight
            if load <= best[0]:
                rank = (load, picked.get(candidate.order, 0))
                if rank < best:
                    best, chosen = rank, candidate
        self._turn += 1
        picked[chosen.order] = self._turn
        return chosen
