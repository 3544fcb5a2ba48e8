"""A target's place in one model's list: what a policy may know of it (`router.policy.Candidate`)."""

from __future__ import annotations

from router.config.schema import Price
from router.load import Demand
from router.target import Target

LEAST_EXPENSE = 1.0
"""Millionths of a dollar a request: what is free isn't infinitely cheaper than what is nearly free."""


class Member:
    """A target's place in one model's list."""

    __slots__ = (
        "_price",
        "_thrift",
        "_whole_weight",
        "load",
        "local",
        "order",
        "target",
        "warmth",
        "weight",
    )

    def __init__(
        self,
        target: Target,
        order: int,
        weight: float,
        price: Price | None = None,
        thrift: float = 0.0,
    ) -> None:
        """``price``: what it costs us; ``thrift``: how much that matters, 0 to 1."""
        self.target = target
        self.local = target.local
        self._price = price
        self._thrift = thrift
        self.load = target.load
        """What the target has to do, for whichever model."""
        self.order = order
        self.weight = self._whole_weight = weight
        self.warmth = 1.0

    def warm(self, part: float) -> None:
        """That part of its weight is its due from now on."""
        self.warmth = part
        self.weight = self._whole_weight * part

    def headroom(self, now: float) -> float:
        """Share of its provider's limits that is left, 0 to 1; 1 where none is known."""
        quota = self.target.quota
        return quota.headroom(now) if quota is not None and quota.knows else 1.0

    def expense(self, demand: Demand) -> float | None:
        """What it costs us there, as far as it matters; None where nobody said."""
        price = self._price
        if price is None or not self._thrift:
            return None
        usd = demand.input_tokens * price.input + demand.output_tokens * price.output
        return float((usd + LEAST_EXPENSE) ** self._thrift)
