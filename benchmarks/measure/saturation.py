"""When a load is more than the server can take: its queue grows without end, and so does the wait.

In an open loop two things rise together then: requests in the server and the time to the first token. Either alone
means little (the first answers fill a server; a burst makes a few wait), so both must rise significantly and by much.
Requests in the server are counted per offered rate, which by Little's law is the time spent there, so that a load that
is meant to rise is not taken for one that is too high.

A queue near its capacity wanders, and its neighbouring values depend on each other, so that a slope of it is
significant sooner or later. Therefore a third thing is asked: that more came than went by more than chance does. Of n
that came and about as many that went, both Poisson, the difference has a standard deviation of the root of 2n. With
it, no simulated queue at 0.7 or 0.9 of its capacity was called saturated in two minutes (three kinds, 12 seeds each),
every one at twice its capacity was; without it, a third to nine tenths of those at 0.9 were.

Source: J. Little, "A proof for the queuing formula L = λW", 1961; GuideLLM's detection of over-saturation, which tests
the slopes of the same two series; its first tokens count here when they come, not when answers end.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

import msgspec

from benchmarks.measure.numbers import trend

LEAST_S = 20.0
"""Before, a server may still be filling up."""
WINDOW_S = 180.0
"""Long enough for a few requests a second to tell a trend, short enough to forget a calm beginning."""
BATCHES = 10
"""Means of 2 to 18 seconds: longer than an answer's steps, so that neighbours depend on each other little."""
CONFIDENCE = 0.99
"""One-sided, of each slope. It is asked every second, of series that overlap."""
GROWTH = 0.8
"""The line's rise over its mean: its end is at least 2.3 times its begin. Half of what a queue from 0 has (2)."""
CHANCE = 3.0
"""Standard deviations by which more came than went: one in 700 for a single look."""
LEAST_FIRSTS = 20


class Sign(msgspec.Struct, frozen=True):
    """What gave it away."""

    at_s: float
    in_server_rise: float
    """Times the mean."""
    ttft_rise: float

    def __str__(self) -> str:
        return (
            f"saturated after {self.at_s:.0f} s: requests in the server and TTFT rose "
            f"{self.in_server_rise:.1f} and {self.ttft_rise:.1f} times their means"
        )


class Saturation:
    """Watches one open-loop stage. Times are seconds since its start, in order."""

    def __init__(self, least_s: float = LEAST_S) -> None:
        self._least_s = least_s
        self._sojourns: deque[tuple[float, float]] = deque()
        self._rates: deque[tuple[float, float]] = deque()
        self._firsts: deque[tuple[float, float]] = deque()

    def in_server(self, now_s: float, count: int, rate: float) -> None:
        """``count`` requests are sent and not answered, at an offered ``rate``; said about once a second."""
        if rate > 0:
            self._sojourns.append((now_s, count / rate))
            self._rates.append((now_s, rate))

    def first_token(self, now_s: float, ttft_s: float) -> None:
        """A first token came."""
        self._firsts.append((now_s, ttft_s))

    def sign(self, now_s: float) -> Sign | None:
        """What shows that the server is saturated, or None."""
        for series in (self._sojourns, self._rates, self._firsts):
            while series and series[0][0] < now_s - WINDOW_S:
                series.popleft()
        if now_s < self._least_s or len(self._firsts) < LEAST_FIRSTS:
            return None
        trends = [trend(list(series), BATCHES) for series in (self._sojourns, self._firsts)]
        if trends[0].rise * self._rate() <= CHANCE * self._deviation():
            return None
        if not all(one.rises(CONFIDENCE) and one.rise > GROWTH * one.mean for one in trends):
            return None
        return Sign(now_s, *(one.rise / one.mean for one in trends))

    def _rate(self) -> float:
        return statistics.fmean(rate for _, rate in self._rates)

    def _deviation(self) -> float:
        """Of the difference of those who came and those who went, by chance."""
        came = self._rate() * (self._rates[-1][0] - self._rates[0][0])
        return math.sqrt(2 * came)
