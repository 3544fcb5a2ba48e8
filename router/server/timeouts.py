"""A time limit that many have alike, on one timer.

Whoever began first is late first, so they stand in a dict in the order in which they began, and only the first needs a
timer. Beginning and ending is a dict's insertion and removal; a timer of the event loop takes half a KiB and as long as
ten of these.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Timeouts(Generic[T]):
    """Those who have ``limit_s`` for something, from the moment that they begin it; who is ``late`` is out of it."""

    __slots__ = ("_late", "_limit_s", "_loop", "_timer", "due")

    def __init__(self, limit_s: float, late: Callable[[T], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit_s = limit_s
        self._late = late
        self.due: dict[T, float] = {}
        """When whose time is over, on the loop's clock."""
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, one: T) -> None:
        """Its time runs from now, whether it ran before or not."""
        self.due.pop(one, None)
        due = self.due[one] = self._loop.time() + self._limit_s
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._look)

    def end(self, one: T) -> None:
        """It is in time, or it doesn't matter any more; nothing for who hasn't begun."""
        self.due.pop(one, None)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        late: list[T] = []
        for one, due in self.due.items():
            if due > now:
                self._timer = self._loop.call_at(due, self._look)
                break
            late.append(one)
        for one in late:
            del self.due[one]
        for one in late:
            self._late(one)
