"""A target that came back gets its share little by little: its cache is cold, and what ejected it may still be near.

    part = max(0.1, (t / T) ^ (1 / aggression))          t seconds after it was readmitted, 1 from T on

Policies that weigh multiply its weight by that part; a rotation without weights lets its turn pass the rest of the
time. Somebody's part is computed while he is in slow start only: the list of those is empty nearly always.

Source: Envoy, "Slow start mode" (the formula, its floor of 10 % and linear growth as the default).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

FLOOR = 0.1
"""Envoy's min_weight_percent: with less, nobody would learn how it does."""


class Place(Protocol):
    """Where a target stands in a model's list."""

    def warm(self, part: float) -> None:
        """From now on that part of its share is its due."""


class SlowStart:
    """Who came back lately."""

    __slots__ = ("_aggression", "_ramp_s", "places")

    def __init__(self, ramp_s: float = 0.0, aggression: float = 1.0) -> None:
        """The whole share after ``ramp_s``, 0 is at once; an ``aggression`` above 1 gives more of it early."""
        self._ramp_s = ramp_s
        self._aggression = aggression
        self.places: list[tuple[float, Sequence[Place]]] = []
        """Who is in slow start, and since when; while nobody is, ``update`` is of no use."""

    def begin(self, places: Sequence[Place], now: float) -> None:
        """A target that stands at these ``places`` was readmitted."""
        if self._ramp_s > 0:
            self.places = [(since, those) for since, those in self.places if those is not places]
            self.places.append((now, places))
            self.update(now)

    def update(self, now: float) -> None:
        """Give each the part that is its due now, and forget those who have all."""
        for since, places in self.places:
            part = self.part(now - since)
            for place in places:
                place.warm(part)
        self.places = [one for one in self.places if now - one[0] < self._ramp_s]

    def part(self, seconds: float) -> float:
        """The part of its share so long after the readmission."""
        if seconds >= self._ramp_s:
            return 1.0
        return max(FLOOR, math.pow(seconds / self._ramp_s, 1 / self._aggression))
