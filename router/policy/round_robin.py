"""Everyone in turn: the candidate picked longest ago.

Not a cursor over the list: candidates come and go (ejected, tried already), and a cursor then favours the neighbour
of whoever is missing. Remembering when each was picked shares their load evenly among all that are left.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from router.load import Demand
from router.policy import C


class RoundRobin:
    """Least recently picked first; those never picked come first, in the order of the config."""

    wants_facts: ClassVar[bool] = False
    scores: ClassVar[bool] = False

    def __init__(self) -> None:
        self._turn = 0
        self._picked: dict[int, int] = {}

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:  # noqa: ARG002
        """The candidate picked longest ago."""
        picked = self._picked
        chosen = min(candidates, key=lambda candidate: picked.get(candidate.order, 0))
        self._turn += 1
        picked[chosen.order] = self._turn
        return chosen
