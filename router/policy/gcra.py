"""A limit of so many units a window, as a Generic Cell Rate Algorithm: one number instead of a log of requests.

The number is the theoretical arrival time (``tat``): when everything taken so far will have drained, at ``limit``
units a window. A take of n units is allowed if ``tat + n*T - now <= window``; else the difference is exactly how long
to wait. After rest a whole window's worth may come at once, and from then on the rate: over any span of s seconds
never more than ``limit * (1 + s / window)``. There are no calendar windows, so there is no reset at midnight to
burst around, and no month whose last day is special: a day is 86,400 s after anything that was taken.

What an answer will cost isn't known before it is there, so units are reserved as a guess (`reserve`) and settled as
they were (`settle`). A hold remembers where in the queue its units stand; those that have drained meanwhile are past
and can't be given back, else a request held open for long could be cancelled for a second burst. Who stands behind
units that are given back moves forward; a Fenwick tree over the holds knows how far, so that one among thousands is
settled in as many steps as their number has bits.

Time is kept in nanoseconds times the limit: then one unit is a whole number, nothing is rounded, and sixty takes of
a minute's sixtieth are one minute exactly.

Source: ATM Forum, Traffic Management 4.1 (virtual scheduling); Brandur Leach, "Rate Limiting, Cells, and GCRA";
redis-cell; Peter Fenwick, "A New Data Structure for Cumulative Frequency Tables" (1994).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

import msgspec

_NS = 1_000_000_000
_NS_S = float(_NS)
"""The same, by which seconds are multiplied: a float by a float is what Python is quick at."""
_SPARE_PLACES = 64
"""For holds to come, besides as many as there are, before places are numbered again."""


class Hold(msgspec.Struct, eq=False, gc=False):
    """Units reserved and not settled yet."""

    units: int
    end: int
    """When the last of them was to drain when it came, in the limit's own time."""
    place: int
    """In the row of holds, counted from 1."""
    moved: int
    """How far those before it had been moved when it came."""


class Gcra:
    """One limit of one client. ``now`` is monotonic seconds everywhere."""

    __slots__ = ("_holds", "_moved", "_moves", "_place", "limit", "step", "tat", "window")

    def __init__(self, limit: int, window_s: int) -> None:
        """``limit``: units a window, at least 1."""
        self.limit = limit
        self.step = window_s * _NS
        """What one unit takes to drain. This and the next two are in the limit's own time: nanoseconds times it."""
        self.window = self.step * limit
        self.tat = 0
        self._holds: dict[Hold, None] = {}
        """Not settled yet, in the order of their places."""
        self._place = 0
        """The last that was given."""
        self._moves: list[int] = []
        """The Fenwick tree: how far the settling of a place's hold moved all who stood behind it."""
        self._moved = 0
        """The sum of it."""

    def wait_s(self, units: int, now: float) -> float:
        """How long until ``units`` fit: 0 if they do, infinite if they never will."""
        if units > self.limit:
            return float("inf")
        at = self._at(now)
        late = max(self.tat, at) + units * self.step - at - self.window
        return late / (_NS * self.limit) if late > 0 else 0.0

    def reserve(self, units: int, now: float) -> Hold:
        """Take ``units``, which fit now, until they are settled."""
        return self.hold(units, max(self._at(now), self.tat) + units * self.step)

    def hold(self, units: int, tat: int) -> Hold:
        """The same where it is known what ``tat`` becomes."""
        self.tat = tat
        self._place += 1
        hold = Hold(units, tat, self._place, self._moved)
        self._holds[hold] = None
        return hold

    def take(self, units: int, now: float) -> None:
        """Take ``units`` for good."""
        self.tat = max(self._at(now), self.tat) + units * self.step

    def settle(self, hold: Hold, units: int, now: float) -> None:
        """It was ``units`` that were used. Raises KeyError if ``hold`` was settled before."""
        holds = self._holds
        if hold not in holds:
            raise KeyError(hold)
        unused = hold.units - units
        if unused < 0:
            self.take(-unused, now)
        elif unused and hold.end > (at := floor(now * _NS_S) * self.limit):
            back, left = unused * self.step, hold.end - at
            if self._moved != hold.moved:
                left -= self._moved_before(hold)
            if left < back:
                back = left
            if back > 0:
                self.tat -= back
                if len(holds) > 1:
                    self._move_behind(hold, back)
        del holds[hold]
        if not holds:
            self._place = self._moved = 0
            self._moves = []

    def level(self, now: float) -> int:
        """What has not drained yet, in units times ``step``."""
        return max(0, self.tat - self._at(now))

    def used(self, now: float) -> int:
        """Units that have not drained yet, rounded up."""
        return -(-self.level(now) // self.step)

    def is_idle(self, now: float) -> bool:
        """Full, and nothing under way: forgetting it changes nothing."""
        return not self._holds and self.tat <= self._at(now)

    def _at(self, now: float) -> int:
        return floor(now * _NS_S) * self.limit

    # The row of holds

    def _moved_before(self, hold: Hold) -> int:
        """How far ``hold`` was moved forward since it came."""
        moves, place, moved = self._moves, hold.place - 1, 0
        if place >= len(moves):
            moved = self._moved
        else:
            while place:
                moved += moves[place]
                place &= place - 1
        return moved - hold.moved

    def _move_behind(self, settled: Hold, by: int) -> None:
        """Move all who stand behind ``settled`` forward."""
        if settled.place >= len(self._moves):
            self._renumber()
        moves, place = self._moves, settled.place
        count = len(moves)
        while place < count:
            moves[place] += by
            place += place & -place
        self._moved += by

    def _renumber(self) -> None:
        """New places for all that are left, in a tree that has room for twice as many."""
        ends = [hold.end - self._moved_before(hold) for hold in self._holds]
        for place, (hold, end) in enumerate(zip(self._holds, ends, strict=True), 1):
            hold.end, hold.place, hold.moved = end, place, 0
        self._place = len(ends)
        self._moves = [0] * (2 * len(ends) + _SPARE_PLACES)
        self._moved = 0


def reserve_all(
    counted: Sequence[Gcra], weighed: Sequence[Gcra], units: int, now: float
) -> tuple[list[int], list[tuple[Gcra, Hold]]] | None:
    """Take one unit of each limit in ``counted`` for good, and ``units`` of each in ``weighed`` until they are settled;
    None, and nothing is taken of any, where one would have to be waited for.

    Returns what each limit's level is now (`Gcra.level`), the counted first, and the holds, each with its limit.
    """
    ns = floor(now * _NS_S)
    levels: list[int] = []
    tats: list[int] = []
    holds: list[tuple[Gcra, Hold]] = []
    for gcra in counted:
        at, tat = ns * gcra.limit, gcra.tat
        tat = (tat if tat > at else at) + gcra.step
        level = tat - at
        if level > gcra.window:
            return None
        levels.append(level)
        tats.append(tat)
    for gcra in weighed:
        at, tat = ns * gcra.limit, gcra.tat
        tat = (tat if tat > at else at) + units * gcra.step
        level = tat - at
        if level > gcra.window:
            return None
        levels.append(level)
        tats.append(tat)
    place = 0
    for gcra in counted:
        gcra.tat = tats[place]
        place += 1
    for gcra in weighed:
        holds.append((gcra, gcra.hold(units, tats[place])))
        place += 1
    return levels, holds
