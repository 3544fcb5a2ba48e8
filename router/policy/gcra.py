"""A limit of so many units a window, as a Generic Cell Rate Algorithm: one number instead of a log of requests.

The number is the theoretical arrival time (``tat``): when everything taken so far will have drained, at ``limit``
units a window. A take of n units is allowed if ``tat + n*T - now <= window``; else the difference is exactly how long
to wait. After rest a whole window's worth may come at once, and from then on the rate: over any span of s seconds
never more than ``limit * (1 + s / window)``. There are no calendar windows, so there is no reset at midnight to
burst around, and no month whose last day is special: a day is 86,400 s after anything that was taken.

What an answer will cost isn't known before it is there, so units are reserved as a guess (`reserve`) and settled as
they were (`settle`). A hold remembers where in the queue its units stand; those that have drained meanwhile are past
and can't be given back, else a request held open for long could be cancelled for a second burst.

Time is kept in nanoseconds times the limit: then one unit is a whole number, nothing is rounded, and sixty takes of
a minute's sixtieth are one minute exactly.

Source: ATM Forum, Traffic Management 4.1 (virtual scheduling); Brandur Leach, "Rate Limiting, Cells, and GCRA";
redis-cell.
"""

from __future__ import annotations

_NS = 1_000_000_000


class Hold:
    """Units reserved and not settled yet."""

    __slots__ = ("end", "units")

    def __init__(self, units: int, end: int) -> None:
        self.units = units
        self.end = end
        """When the last of them drains, in the limit's own time."""


class Gcra:
    """One limit of one client. ``now`` is monotonic seconds everywhere."""

    __slots__ = ("_holds", "_step", "_tat", "_window", "limit")

    def __init__(self, limit: int, window_s: int) -> None:
        """``limit``: units a window, at least 1."""
        self.limit = limit
        self._step = window_s * _NS
        self._window = self._step * limit
        self._tat = 0
        self._holds: dict[Hold, None] = {}

    def wait_s(self, units: int, now: float) -> float:
        """How long until ``units`` fit: 0 if they do, infinite if they never will."""
        if units > self.limit:
            return float("inf")
        at = self._at(now)
        late = max(self._tat, at) + units * self._step - at - self._window
        return late / (_NS * self.limit) if late > 0 else 0.0

    def reserve(self, units: int, now: float) -> Hold:
        """Take ``units``, which the caller has asked ``wait_s`` about, until they are settled."""
        self.take(units, now)
        hold = Hold(units, self._tat)
        self._holds[hold] = None
        return hold

    def take(self, units: int, now: float) -> None:
        """Take ``units`` for good."""
        self._tat = max(self._tat, self._at(now)) + units * self._step

    def settle(self, hold: Hold, units: int, now: float) -> None:
        """It was ``units`` that were used. Raises KeyError if ``hold`` was settled before."""
        del self._holds[hold]
        if units > hold.units:
            self.take(units - hold.units, now)
            return
        back = min((hold.units - units) * self._step, max(0, hold.end - self._at(now)))
        self._tat -= back
        for later in reversed(self._holds):
            if later.end <= hold.end:
                break
            later.end -= back

    def used(self, now: float) -> int:
        """Units that have not drained yet, rounded up."""
        level = self._tat - self._at(now)
        return -(-level // self._step) if level > 0 else 0

    def remaining(self, now: float) -> int:
        """Units that would be allowed now."""
        return max(0, self.limit - self.used(now))

    def reset_s(self, now: float) -> float:
        """How long until it is full again if nothing more is taken."""
        return max(0, self._tat - self._at(now)) / (_NS * self.limit)

    def is_idle(self, now: float) -> bool:
        """Full, and nothing under way: forgetting it changes nothing."""
        return not self._holds and self._tat <= self._at(now)

    def _at(self, now: float) -> int:
        return round(now * _NS) * self.limit
