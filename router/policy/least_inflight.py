"""The least busy: fewest requests in flight for its weight, counted with the one to come."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from router.load import Demand
from router.policy import C, Turns


class LeastInflight:
    """Smallest (in flight + 1) / weight."""

    wants_facts: ClassVar[bool] = False

    def __init__(self) -> None:
        self._turns = Turns()

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:  # noqa: ARG002
        """The candidate with the least load after this request would be added."""
        turns = self._turns
        return turns.take(turns.least(candidates, lambda one: (one.load.inflight + 1) / one.weight))
