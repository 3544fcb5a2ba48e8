"""Objectives in words, ``ttft=2s,tpot_p99=80ms``, and whether a stage meets them.

A request is good if it ended well within every limit. ``ttft=2s`` asks that nine in ten requests are good;
``ttft_p99=2s`` that the 99th percentile of all requests is within, a failed one counting as infinite.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from benchmarks.measure.records import OK, UNFINISHED, Record
from benchmarks.simulate.capacity import ENOUGH
from benchmarks.simulate.measures import percentile

Metric = Literal["ttft", "tpot", "e2e"]
_PART = re.compile(r"(ttft|tpot|e2e)(?:_p(\d{1,2}(?:\.\d+)?))?=(.+)")
_TIME = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|s|m|h)?")
ROUNDING = 1e-6
"""Of a share times a count, which is a count."""
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


class BadSlo(ValueError):  # noqa: N818 - the name says the state
    """The words are no objective; says how to write one."""


class Limit(msgspec.Struct, frozen=True):
    """One limit of an objective."""

    metric: Metric
    seconds: float
    percent: float | None = None
    """Of the percentile that must be within; None: of each request."""

    def __str__(self) -> str:
        at = f" p{self.percent:g}" if self.percent is not None else ""
        return f"{self.metric.upper()}{at} ≤ {shown_time(self.seconds)}"


class Slo(msgspec.Struct, frozen=True):
    """What must be met; without limits, that requests end well."""

    limits: tuple[Limit, ...] = ()

    def __str__(self) -> str:
        return ", ".join(map(str, self.limits))

    def good(self, record: Record) -> bool:
        """Whether the request ended well and within every limit."""
        return record.outcome == OK and all(
            value(record, limit.metric) <= limit.seconds for limit in self.limits
        )

    def met(self, records: Sequence[Record]) -> bool:
        """Whether the requests, of which there must be some, meet it. Unfinished ones don't count."""
        judged = [one for one in records if one.outcome != UNFINISHED]
        if not judged:
            return False
        for limit in self.limits:
            if limit.percent is None:
                continue
            values = sorted(value(one, limit.metric) for one in judged)
            if percentile(values, limit.percent / 100) > limit.seconds:
                return False
        if self.limits and all(limit.percent is not None for limit in self.limits):
            return True
        return sum(map(self.good, judged)) >= ENOUGH * len(judged) - ROUNDING

    def hopeless(self, records: Sequence[Record], planned: int, now_s: float) -> bool:
        """Whether it can't be met any more, of ``planned`` requests in all, with those still waiting as they are."""
        for limit in self.limits:
            share = 1 - limit.percent / 100 if limit.percent is not None else 1 - ENOUGH
            missed = sum(_missed(one, limit, now_s) for one in records)
            if missed > share * planned + ROUNDING:
                return True
        return False


def value(record: Record, metric: Metric) -> float:
    """A request's figure in seconds; infinite where it failed, 0 where it has none."""
    if record.outcome != OK:
        return math.inf
    if metric == "ttft":
        return record.ttft_s if record.ttft_s is not None else math.inf
    if metric == "e2e":
        return record.e2e_s
    return record.tpot_s or 0.0


def _missed(record: Record, limit: Limit, now_s: float) -> bool:
    if record.outcome not in {UNFINISHED, OK}:
        return True
    if record.outcome == OK:
        return value(record, limit.metric) > limit.seconds
    if limit.metric == "ttft" and record.first_s is not None:
        return record.first_s - record.due_s > limit.seconds
    return limit.metric != "tpot" and now_s - record.due_s > limit.seconds


def slo(text: str) -> Slo:
    """The objective in ``text``. Raises BadSlo."""
    limits = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = _PART.fullmatch(part)
        seconds = span(found[3]) if found else None
        if found is None or not seconds:
            raise BadSlo(f"{part!r}; write such as ttft=2s,tpot_p99=80ms (ttft, tpot, e2e)")
        percent = float(found[2]) if found[2] is not None else None
        if percent is not None and not percent:
            raise BadSlo(f"{part!r}: a percentile is above 0 and below 100")
        limits.append(Limit(found[1], seconds, percent))  # type: ignore[arg-type] # one of three
    return Slo(tuple(limits))


def span(text: str) -> float | None:
    """Seconds of ``500ms``, ``2s``, ``1.5m``, ``1h`` or a bare number; None where it is none of them."""
    found = _TIME.fullmatch(text.strip())
    return float(found[1]) * _UNITS[found[2]] if found else None


def shown_time(seconds: float) -> str:
    """``85 ms``, ``1.20 s``, ``2.5 min``: three digits and a unit."""
    if not math.isfinite(seconds):
        return "∞"
    if abs(seconds) < 0.0095:
        return f"{seconds * 1000:.2f} ms"
    if abs(seconds) < 0.0995:
        return f"{seconds * 1000:.1f} ms"
    if abs(seconds) < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if abs(seconds) < 120:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min"
