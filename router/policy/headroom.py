"""Two at random, and of them whoever has less under way for what its provider still lets us do; prices break near ties.

    score = (tokens in flight + those of this request) / (weight x headroom) x price ^ thrift

A provider's insides are unknown, but what we have there is known, and so is what is left of its limits. Ranking by
measured latency did worse than plain power of two: it sends everybody to whoever was fast a moment ago. A price acts by
its ratio and softly: at a thrift of 1/4, ten times dearer is as bad as 1.8 times busier, so that the cheap one is never
loaded beyond that.

Source: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from router.load import Demand
from router.policy import C

LEAST_HEADROOM = 0.02
"""Below it a request is let through or not, but nobody is a hundred times busier than another for the sake of 1 %."""


class Headroom:
    """The smaller score of two that differ; see the module."""

    wants_facts: ClassVar[bool] = False

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:
        """The better of two random candidates."""
        count = len(candidates)
        if count == 1:
            return candidates[0]
        one = int(rng.random() * count)
        two = int(rng.random() * (count - 1))
        first, second = candidates[one], candidates[two + (two >= one)]
        new = demand.input_tokens + demand.output_tokens + 1
        score = (first.load.reserved_tokens + new) * second.weight * self._left(second, now)
        other = (second.load.reserved_tokens + new) * first.weight * self._left(first, now)
        price = first.expense(demand)
        if price is not None:
            other_price = second.expense(demand)
            if other_price is not None:
                score *= price
                other *= other_price
        return second if other < score else first

    @staticmethod
    def _left(candidate: C, now: float) -> float:
        left = candidate.headroom(now)
        return max(LEAST_HEADROOM, left)
