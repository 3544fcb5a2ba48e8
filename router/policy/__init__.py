"""How a target is chosen and when it is left alone: one mechanism a file, pure, siblings that never meet.

A policy is an object with ``pick``; what it remembers between picks is its own. Candidates come in the order of the
config and are never empty.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, TypeVar

from router.load import Demand, Load


class Candidate(Protocol):
    """What a policy may know of somebody who could serve."""

    @property
    def order(self) -> int:
        """Its place in the model's list: its identity among candidates."""

    @property
    def weight(self) -> float:
        """Its share, relative to the others'."""

    @property
    def local(self) -> bool:
        """Whether it is one of our own engines."""

    @property
    def load(self) -> Load:
        """What it has to do; to be read only."""

    def headroom(self, now: float) -> float:
        """Share of its provider's limits that is left, 0 to 1."""

    def expense(self, demand: Demand) -> float | None:
        """What it costs there, as far as that matters; None where nobody said."""


C = TypeVar("C", bound=Candidate)


class Turns:
    """Who was picked when. Equal scores, and on an idle pool all are equal, go to whoever was picked longest
    ago, so that the first in the list doesn't get all the traffic of a quiet hour.
    """

    __slots__ = ("_picked", "_turn")

    def __init__(self) -> None:
        self._turn = 0
        self._picked: dict[int, int] = {}

    def last(self, candidate: Candidate) -> int:
        """The turn in which ``candidate`` was picked last; 0 for never."""
        return self._picked.get(candidate.order, 0)

    def take(self, chosen: C) -> C:
        """Note that ``chosen`` is picked now."""
        self._turn += 1
        self._picked[chosen.order] = self._turn
        return chosen

    def least(self, candidates: Sequence[C], score: Callable[[C], float]) -> C:
        """The candidate with the smallest score; not noted yet."""
        chosen, best = candidates[0], float("inf")
        for candidate in candidates:
            value = score(candidate)
            if value < best or (value == best and self.last(candidate) < self.last(chosen)):
                chosen, best = candidate, value
        return chosen


class Policy(Protocol):
    """Chooses one of several."""

    wants_facts: ClassVar[bool]
    """Whether it looks at the demand; where not, nobody computes it."""
    scores: ClassVar[bool]
    """Whether it scores each candidate by itself, so that of very many it may be shown a sample."""

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:
        """The candidate that should serve a request; the caller will send it there."""
