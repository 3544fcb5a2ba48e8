"""How a target is chosen and when it is left alone: one mechanism a file, pure, siblings that never meet.

A policy is an object with ``pick``, or a rotation with ``next``; what it remembers between picks is its own.
Candidates come in the order of the config and are never empty.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
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
        """Its share, relative to the others'; in slow start only the part of it that is its due now."""

    @property
    def warmth(self) -> float:
        """That part: 1, or less in slow start."""

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

    __slots__ = ("_turn", "picked")

    def __init__(self) -> None:
        self._turn = 0
        self.picked: dict[int, int] = {}
        """The turn in which a candidate was picked last, by its order."""

    def last(self, candidate: Candidate) -> int:
        """The turn in which ``candidate`` was picked last; 0 for never."""
        return self.picked.get(candidate.order, 0)

    def take(self, chosen: C) -> C:
        """Note that ``chosen`` is picked now."""
        self._turn += 1
        self.picked[chosen.order] = self._turn
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
    """Chooses one of several by their load."""

    wants_facts: ClassVar[bool]
    """Whether it looks at the demand; where not, nobody computes it."""

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:
        """The candidate that should serve a request; the caller will send it there. Of very many it is shown a
        sample.
        """


S = TypeVar("S", bound=Candidate)
"""A member of a rotation."""


class Rotation(ABC):
    """Serves everybody in an order of its own, whatever their load; asks only as many as it must."""

    wants_facts: ClassVar[bool] = False

    @abstractmethod
    def next(
        self, members: Sequence[S], ready: Callable[[S], bool], rng: random.Random
    ) -> S | None:
        """The member whose turn it is among those that are ``ready``; None where nobody is.

        ``members`` are the same in every call: all of the model's, each at its ``order``.
        """

    @staticmethod
    def passes(member: Candidate, rng: random.Random) -> bool:
        """Whether a member that is in slow start lets this turn pass."""
        return member.warmth < 1 and rng.random() >= member.warmth
