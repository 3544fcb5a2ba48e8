"""Everyone in turn: the candidate picked longest ago.

Not a cursor over the list: candidates come and go (ejected, tried already), and a cursor then favours the neighbour
of whoever is missing. Remembering when each was picked shares their load evenly among all that are left.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from router.load import Demand
from router.policy import C, Turns


class RoundRobin:
    """Least recently picked first; those never picked come first, in the order of the config."""

    wants_facts: ClassVar[bool] = False
    scores: ClassVar[bool] = False

    def __init__(self) -> None:
        self._turns = Turns()

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:  # noqa: ARG002
        """The candidate picked longest ago."""
        return self._turns.take(min(candidates, key=self._turns.last))
