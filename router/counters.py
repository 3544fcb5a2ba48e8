"""Counters and histograms that cost a few additions, and the page that Prometheus reads.

One thread counts (the event loop's), so nothing is locked. A page has two halves: ``take`` copies the numbers, in that
thread, so that they belong together; what it gives writes lines, in any thread. How a series' lines begin is written
once, when the series is new, so that a page takes little more than writing numbers down: a thread that writes holds
the interpreter's lock all the while, and the event loop waits for it.

There is no ``_created``: Prometheus would keep it as a series of its own beside each, and ``rate`` sees a restart
without it.

Source: Prometheus' text format 0.0.4; OpenMetrics 1.0.0. Methods are named as in prometheus_client.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Generic, Literal, NamedTuple, TypeVar

C = TypeVar("C", "Count", "Spread")
Values = tuple[str, ...]
Kind = Literal["counter", "gauge", "histogram"]

TEXT = "text/plain; version=0.0.4; charset=utf-8"
BATCH = 64
"""Writes between two moments in which another thread may go on: a quarter of a millisecond. Left to itself, the
interpreter lets the event loop wait for 5 ms each time."""
OPEN = "application/openmetrics-text; version=1.0.0; charset=utf-8"


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

    def observe_all(self, values: list[float]) -> None:
        """Count each of ``values``, which are sorted here: a look for each bound instead of one for each value."""
        values.sort()
        self.total += sum(values)
        counts, count, below = self.counts, len(values), 0
        for place, bound in enumerate(self._bounds):
            upto = bisect_right(values, bound, below)
            counts[place] += upto - below
            below = upto
            if below == count:
                return
        counts[-1] += count - below

    def observe_times(self, value: float, times: int) -> None:
        """Count ``value``, so many times."""
        self.counts[bisect_left(self._bounds, value)] += times
        self.total += value * times

    def copy(self) -> Spread:
        """What it counted so far."""
        copied = Spread(self._bounds)
        copied.counts, copied.total = self.counts[:], self.total
        return copied


class Taken(NamedTuple):
    """A family's numbers at one moment."""

    family: Description
    lines: Callable[[], Iterator[str]]
    """Writes them."""


class Description:
    """What a family is."""

    kind: Kind

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = ()) -> None:
        """``name``: a counter's without ``_total``."""
        self.name = name
        self.documentation = documentation
        self.label_names = tuple(labels)

    @property
    def full_name(self) -> str:
        """As its samples are called, but for what a histogram's end in."""
        return f"{self.name}_total" if self.kind == "counter" else self.name

    def head(self, suffix: str, values: Values, more: str = "") -> str:
        """How a sample's line begins. ``more``: another label, ready to stand there."""
        if len(values) != len(self.label_names):
            raise ValueError(f"{self.name} has the labels {self.label_names}")
        pairs = [
            f'{name}="{_escaped(value)}"'
            for name, value in zip(self.label_names, values, strict=True)
        ]
        inner = ",".join(sorted([*pairs, more] if more else pairs))
        return f"{self.name}{suffix}{{{inner}}} " if inner else f"{self.name}{suffix} "


class Gauge(Description):
    """Figures that are read when somebody scrapes."""

    kind = "gauge"

    def taken(self, rows: Iterable[tuple[Values, float]]) -> Taken:
        """The family of ``rows``, which nobody changes."""
        return Taken(self, lambda: _lines(self, "", rows))


class _Family(Description, Generic[C]):
    """All series of one name, by their labels."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, documentation, labels)
        self._series: dict[Values, C] = {}
        self._heads: dict[Values, Sequence[str]] = {}

    def labels(self, *values: str) -> C:
        """The series of these labels, in the order of their names; counted from zero when it is new."""
        found = self._series.get(values)
        if found is None:
            self._heads[values] = self._begin(values)
            found = self._series[values] = self._new()
        return found

    def keep(self, known: Mapping[str, Collection[str]]) -> None:
        """Forget the series of which a label named in ``known`` has a value that isn't there any more."""
        checked = [(at, known[name]) for at, name in enumerate(self.label_names) if name in known]
        for values in list(self._series) if checked else ():
            if any(values[at] not in names for at, names in checked):
                del self._series[values], self._heads[values]

    def _new(self) -> C:
        raise NotImplementedError

    def _begin(self, values: Values) -> Sequence[str]:
        """How the lines of a new series begin."""
        raise NotImplementedError


class Counter(_Family[Count]):
    """Counters. One without labels is counted at ``labels()``."""

    kind = "counter"

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = ()) -> None:
        """``name``: without ``_total``."""
        super().__init__(name, documentation, labels)
        if not labels:
            self.labels()

    def take(self) -> Taken:
        """What is counted so far."""
        heads = self._heads
        rows = [(heads[values][0], count.value) for values, count in self._series.items()]
        return Taken(self, lambda: (f"{head}{_number(value)}\n" for head, value in rows))

    def taken(self, rows: Iterable[tuple[Values, float]]) -> Taken:
        """The same of what somebody else counted, and nobody changes."""
        return Taken(self, lambda: _lines(self, "_total", rows))

    def _new(self) -> Count:
        return Count()

    def _begin(self, values: Values) -> Sequence[str]:
        return (self.head("_total", values),)


class Histogram(_Family[Spread]):
    """Histograms. One without labels is counted at ``labels()``."""

    kind = "histogram"

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
    ) -> None:
        """``buckets``: their upper bounds in order, without infinity."""
        self.buckets = tuple(float(bound) for bound in buckets)
        super().__init__(name, documentation, labels)
        if not labels:
            self.labels()

    def take(self) -> Taken:
        """What is counted so far."""
        heads = self._heads
        rows = [(heads[values], one.counts[:], one.total) for values, one in self._series.items()]
        return Taken(self, lambda: _spread_lines(rows))

    def taken(self, rows: Iterable[tuple[Values, Spread]]) -> Taken:
        """The same of what somebody else counted, and goes on counting."""
        copies = [(values, one.counts[:], one.total) for values, one in rows]
        return Taken(self, lambda: _spread_lines((self._begin(row[0]), *row[1:]) for row in copies))

    def _new(self) -> Spread:
        return Spread(self.buckets)

    def _begin(self, values: Values) -> Sequence[str]:
        bounds = (*map(_number, self.buckets), "+Inf")
        buckets = [self.head("_bucket", values, f'le="{bound}"') for bound in bounds]
        return (*buckets, self.head("_count", values), self.head("_sum", values))


def _lines(family: Description, suffix: str, rows: Iterable[tuple[Values, float]]) -> Iterator[str]:
    for values, value in rows:
        yield f"{family.head(suffix, values)}{_number(value)}\n"


def _spread_lines(rows: Iterable[tuple[Sequence[str], list[int], float]]) -> Iterator[str]:
    for heads, counts, total in rows:
        sums = list(accumulate(counts))
        yield "".join(
            [f"{head}{count}\n" for head, count in zip(heads, (*sums, sums[-1]), strict=False)]
        )
        yield f"{heads[-1]}{_number(total)}\n"


def content_type_of(accept: str) -> str:
    """What an Accept header asks for: OPEN, where it likes that no less than plain text; else TEXT."""
    best = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if kind in best:
            best[kind] = max(best[kind], _quality(parameters))
    open_metrics, plain = best.values()
    return OPEN if open_metrics and open_metrics >= plain else TEXT


def page(families: Iterable[Taken], content_type: str) -> bytes:
    """The page of ``families`` in that format, OPEN or TEXT. Gives way to other threads as it goes."""
    parts: list[bytes] = []
    for family, write in families:
        name = family.name if content_type == OPEN else family.full_name
        help_ = _escaped(family.documentation)
        lines = [f"# HELP {name} {help_}\n# TYPE {name} {family.kind}\n"]
        for line in write():
            lines.append(line)
            if len(lines) >= BATCH:
                parts.append("".join(lines).encode())
                lines.clear()
                time.sleep(0)
        parts.append("".join(lines).encode())
    if content_type == OPEN:
        parts.append(b"# EOF\n")
    return b"".join(parts)


def _quality(parameters: Sequence[str]) -> float:
    """The weight of a media range (RFC 9110, section 12.4.2); 0 where it is no number."""
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    """In Go's words for what isn't finite."""
    text = repr(float(value))
    return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(text, text)
