"""Counters and histograms that cost a few additions, rendered by prometheus_client when somebody scrapes.

The client's own take a lock for every number and look their buckets up one by one. Here one thread counts (the event
loop's), so nothing is locked; another may render meanwhile, and sees each number as it was a moment ago or is now.

Names and methods are those of prometheus_client.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

C = TypeVar("C", "Count", "Spread")


class Count:
    """One counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add ``amount``, which is not negative."""
        self.value += amount


class Spread:
    """One histogram: how many values were at most each bound, and their sum."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """By bucket, not summed up; the last is for what is above all bounds."""
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count ``value``."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class _Family(Collector, Generic[C]):
    """All series of one name, by their labels."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = tuple(labels)
        self._series: dict[tuple[str, ...], C] = {}
        registry.register(self)

    def labels(self, *values: str) -> C:
        """The series of these labels, in the order of their names; counted from zero when it is new."""
        found = self._series.get(values)
        if found is None:
            if len(values) != len(self._labels):
                raise ValueError(f"{self._name} has the labels {self._labels}")
            found = self._series[values] = self._new()
        return found

    def _new(self) -> C:
        raise NotImplementedError


class Counter(_Family[Count]):
    """Counters. One without labels is counted at ``labels()``."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        registry: CollectorRegistry,
    ) -> None:
        """``name``: without ``_total``."""
        super().__init__(name, documentation, labels, registry)
        if not labels:
            self.labels()

    def _new(self) -> Count:
        return Count()

    def collect(self) -> Iterator[Metric]:
        """What is counted so far."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, count in list(self._series.items()):
            family.add_metric(values, count.value)
        yield family


class Histogram(_Family[Spread]):
    """Histograms. One without labels is counted at ``labels()``."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        """``buckets``: their upper bounds in order, without infinity."""
        self._bounds = tuple(float(bound) for bound in buckets)
        bounds = (*self._bounds, float("inf"))
        self._shown = [str(floatToGoString(bound)) for bound in bounds]  # type: ignore[no-untyped-call]
        super().__init__(name, documentation, labels, registry)
        if not labels:
            self.labels()

    def _new(self) -> Spread:
        return Spread(self._bounds)

    def collect(self) -> Iterator[Metric]:
        """What is counted so far."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for values, spread in list(self._series.items()):
            summed = list(zip(self._shown, accumulate(spread.counts[:]), strict=True))
            family.add_metric(values, summed, spread.total)
        yield family
