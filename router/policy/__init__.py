"""How a target is chosen and when it is left alone: one mechanism a file, pure, siblings that never meet.

A policy is an object with ``pick``; what it remembers between picks is its own. Candidates come in the order of the
config and are never empty.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
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
    def load(self) -> Load:
        """What it has to do; to be read only."""


C = TypeVar("C", bound=Candidate)


class Policy(Protocol):
    """Chooses one of several."""

    wants_facts: ClassVar[bool]
    """Whether it looks at the demand; where not, nobody computes it."""
    scores: ClassVar[bool]
    """Whether it scores each candidate by itself, so that of very many it may be shown a sample."""

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:
        """The candidate that should serve a request; the caller will send it there."""
