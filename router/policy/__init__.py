"""How a target is chosen and when it is left alone: one mechanism a file, pure, siblings that never meet.

A policy is an object with ``pick(candidates)``; what it remembers between picks is its own. Candidates come in the
order of the config and are never empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """What a policy may know of somebody who could serve."""

    @property
    def order(self) -> int:
        """Its place in the model's list: its identity among candidates."""

    @property
    def weight(self) -> float:
        """Its share, relative to the others'."""

    @property
    def inflight(self) -> int:
        """Requests it is working on."""


C = TypeVar("C", bound=Candidate)


class Policy(Protocol):
    """Chooses one of several."""

    def pick(self, candidates: Sequence[C]) -> C:
        """The candidate that should serve the next request; the caller will send it there."""
