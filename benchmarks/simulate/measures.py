"""What came out of runs: shares, percentiles, and intervals over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

from benchmarks.simulate.run import Served


class Slo(msgspec.Struct, frozen=True):
    """What a request must meet to count as served well, in seconds."""

    ttft_s: float = 5.0
    """Mooncake's conversations are long; five seconds for 12,800 tokens is what its users waited."""
    tpot_s: float = 0.06
    """About 17 tokens a second: faster than people read."""


class Measures(msgspec.Struct, frozen=True):
    """One run. Times in seconds."""

    goodput: float
    """Share of all requests that met the objective."""
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p99_s: float
    cached_share: float
    """Of all prompt tokens, those that didn't have to be computed."""


class Interval(msgspec.Struct, frozen=True):
    """A mean over seeds and half the width of its 95 % confidence interval; 0 from one seed alone."""

    mean: float
    half: float


STUDENT_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Two-sided 95 % quantiles of Student's t, for 1 to 9 degrees of freedom."""
NORMAL_95 = 1.96


def measure(served: Sequence[Served], slo: Slo) -> Measures:
    """The measures of one run, which must not be empty."""
    waits = sorted(one.ttft_s for one in served)
    paces = sorted(one.tpot_s for one in served)
    good = sum(one.ttft_s <= slo.ttft_s and one.tpot_s <= slo.tpot_s for one in served)
    tokens = sum(one.input_tokens for one in served)
    return Measures(
        goodput=good / len(served),
        ttft_p50_s=percentile(waits, 0.5),
        ttft_p99_s=percentile(waits, 0.99),
        tpot_p99_s=percentile(paces, 0.99),
        cached_share=sum(one.cached_tokens for one in served) / tokens,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that so large a share doesn't exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % confidence over seeds."""
    mean = statistics.fmean(values)
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return Interval(mean, 0.0)
    freedom = len(values) - 1
    quantile = STUDENT_95[freedom - 1] if freedom <= len(STUDENT_95) else NORMAL_95
    return Interval(mean, quantile * statistics.stdev(values) / math.sqrt(len(values)))
