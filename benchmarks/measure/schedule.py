"""When requests are due, in seconds since a stage's start; decided before it, whatever the server does.

A rate that changes over time is one idea with two spacings: the count of requests due by ``t`` is the integral of the
rate; requests are due where it passes whole numbers (even) or the points of a Poisson process of rate one.

Source: P. Lewis and G. Shedler, "Simulation of nonhomogeneous Poisson processes by thinning", 1979, section 1 (the
time change); G. Schwartz, "Open versus closed: a cautionary tale", NSDI 2006.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Literal

import msgspec

Spacing = Literal["even", "poisson"]


class Rising(msgspec.Struct, frozen=True):
    """A rate that goes in a straight line from ``start`` to ``end`` over ``over_s``, then stays; requests a second."""

    start: float
    end: float
    over_s: float

    def at(self, when_s: float) -> float:
        """The rate at a time."""
        share = min(1.0, max(0.0, when_s / self.over_s))
        return self.start + (self.end - self.start) * share

    def when(self, count: float) -> float:
        """The time by which ``count`` requests are due: the inverse of the rate's integral; may be infinite."""
        whole = (self.start + self.end) / 2 * self.over_s
        if count > whole:
            return self.over_s + (count - whole) / self.end if self.end > 0 else math.inf
        steepness = (self.end - self.start) / self.over_s
        # start x t + steepness x t^2 / 2 = count, in the form that stays exact as steepness goes to 0
        root = math.sqrt(max(0.0, self.start**2 + 2 * steepness * count))
        return 2 * count / (self.start + root) if count else 0.0


def steady(rate: float) -> Rising:
    """The same rate all the time."""
    return Rising(rate, rate, 1.0)


def dues(rate: Rising, spacing: Spacing, rng: random.Random) -> Iterator[float]:
    """Due times in order, without end."""
    count = 0.0
    while True:
        yield rate.when(count)
        count += 1.0 if spacing == "even" else rng.expovariate(1.0)
