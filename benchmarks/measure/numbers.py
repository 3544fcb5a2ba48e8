"""Intervals, trends and tests of difference, for figures that depend on one another.

Requests of one run are no independent samples: they queue behind each other, so that a slow second slows dozens. A
textbook interval over them is far too narrow. Here a run is cut into consecutive batches, and batches are what is
compared and drawn: their means depend on one another much less.

Source: A. Law, "Simulation Modeling and Analysis", batch means; H. Künsch, "The jackknife and the bootstrap for general
stationary observations", 1989 (blocks); H. Mann and D. Whitney, 1947; Abramowitz and Stegun, 26.7.5 (quantiles of t).
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Sequence

import msgspec

from benchmarks.simulate.measures import Interval, percentile

BATCHES = 20
"""Law's advice is 10 to 30: fewer make wide intervals, more depend on one another again."""
DRAWS = 1000
"""Resamplings of a bootstrap: the ends of a 95 % interval then rest on 25 of them each."""
_NORMAL = statistics.NormalDist()


def student(probability: float, freedom: int) -> float:
    """The quantile of Student's t; within 1 % from 3 degrees of freedom on, exact for 1 and 2."""
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        spread = 2 * probability - 1
        return float(spread * math.sqrt(2 / (1 - spread * spread)))
    z = _NORMAL.inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / float(freedom) ** power for power, term in enumerate(terms))


def batches(values: Sequence[float], count: int = BATCHES) -> list[Sequence[float]]:
    """``values``, which are in order of time, in ``count`` consecutive parts as equal as can be; fewer of few."""
    count = min(count, len(values))
    edges = [len(values) * number // count for number in range(count + 1)] if count else []
    return [values[low:high] for low, high in itertools.pairwise(edges)]


def mean_of(values: Sequence[float]) -> Interval:
    """The mean of ``values``, in order of time, and half its 95 % interval from batch means; not of nothing."""
    mean = statistics.fmean(values)
    if len(values) < 2 or not math.isfinite(mean):
        return Interval(mean, 0.0)
    means = [statistics.fmean(part) for part in batches(values)]
    half = student(0.975, len(means) - 1) * statistics.stdev(means) / math.sqrt(len(means))
    return Interval(mean, half)


class Trend(msgspec.Struct, frozen=True):
    """A straight line through points, and how sure it rises."""

    slope: float
    error: float
    """The slope's standard error."""
    freedom: int
    mean: float
    rise: float
    """From the line's begin to its end."""

    def rises(self, confidence: float) -> bool:
        """Whether the slope's one-sided interval lies above 0."""
        if self.freedom < 1 or self.slope <= 0:
            return False
        return self.slope > student(confidence, self.freedom) * self.error


def trend(points: Sequence[tuple[float, float]], parts: int = BATCHES) -> Trend:
    """The least-squares line through the means of ``parts`` batches of ``points`` (time, value), in order of time."""
    times = [statistics.fmean(part) for part in batches([at for at, _ in points], parts)]
    values = [statistics.fmean(part) for part in batches([value for _, value in points], parts)]
    mean = statistics.fmean(values) if values else 0.0
    freedom = len(values) - 2
    if freedom < 1 or times[0] == times[-1]:
        return Trend(0.0, math.inf, 0, mean, 0.0)
    slope, base = statistics.linear_regression(times, values)
    middle = statistics.fmean(times)
    left = sum((value - base - slope * at) ** 2 for at, value in zip(times, values, strict=True))
    spread = sum((at - middle) ** 2 for at in times)
    error = math.sqrt(left / freedom / spread)
    return Trend(slope, error, freedom, mean, slope * (points[-1][0] - points[0][0]))


def mann_whitney(one: Sequence[float], other: Sequence[float]) -> float:
    """The two-sided p that both come from one distribution, by ranks with ties; normal from 8 values each, as used."""
    if not one or not other:
        return 1.0
    pooled = sorted([(value, 0) for value in one] + [(value, 1) for value in other])
    total, rank_sum, ties, at = len(pooled), 0.0, 0.0, 0
    while at < total:
        end = at
        while end < total and pooled[end][0] == pooled[at][0]:
            end += 1
        rank_sum += (at + end + 1) / 2 * sum(which == 0 for _, which in pooled[at:end])
        ties += (end - at) ** 3 - (end - at)
        at = end
    n, m = len(one), len(other)
    score = rank_sum - n * (n + 1) / 2
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    z = max(0.0, abs(score - n * m / 2) - 0.5) / math.sqrt(variance)
    return 2 * (1 - _NORMAL.cdf(z))


class Ratio(msgspec.Struct, frozen=True):
    """How many times something grew, and the 95 % interval of that."""

    value: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether 1 lies outside."""
        return not self.low <= 1 <= self.high


Measure = Callable[[Sequence[float]], float]


def ratio(one: Sequence[float], other: Sequence[float], measure: Measure, seed: int = 1) -> Ratio:
    """``measure`` of the other over that of the one, with the interval of a bootstrap over batches in order of time."""
    rng = random.Random(seed)
    parts = batches(one), batches(other)
    found = []
    for _ in range(DRAWS):
        below, above = (
            measure([value for part in rng.choices(many, k=len(many)) for value in part])
            for many in parts
        )
        if below > 0:
            found.append(above / below)
    base = measure(one)
    if not found or base <= 0:
        return Ratio(1.0, 0.0, math.inf)
    found.sort()
    return Ratio(measure(other) / base, percentile(found, 0.025), percentile(found, 0.975))


def quantile(share: float) -> Measure:
    """The measure that is a quantile."""
    return lambda values: percentile(sorted(values), share)
