"""From a protocol's callbacks to the task of one request: a buffer with one writer, one reader and a time limit.

asyncio.Queue with asyncio.timeout would cost a task wake-up an item and a timer a wait. Here everything that
arrived since the last wait is taken at once, and one timer serves one wait after another: it is set when it must be,
and when it fires early, it sets itself again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from msgspec import Struct

T = TypeVar("T")


class Alarm:
    """One wait after another, each with its time limit, on one timer.

    The timer outlives the waits that end before it: whoever waits again for as long or longer sets none.
    """

    __slots__ = ("_loop", "_rings_at", "_timer", "_waiter", "due", "time")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.time = loop.time
        """The clock of all limits, in seconds."""
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self.due = 0.0
        """When the wait under way ends in a TimeoutError; may be put off."""

    def wait(self, until: float) -> asyncio.Future[None]:
        """Done by `wake`; raises TimeoutError at ``until`` (the loop's time). There is one wait at a time."""
        # A reader that is cancelled leaves a future behind that is done: `wake` and the timer pass it over.
        self.due = until
        if self._timer is None or self._rings_at > until:
            self.stop()
            self._set(until)
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def wake(self) -> None:
        """End the wait under way, if there is one."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def stop(self) -> None:
        """Drop the timer; for whoever will not wait again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, at: float) -> None:
        self._rings_at = at
        self._timer = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._timer = None
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self.time() >= self.due:
            waiter.set_exception(TimeoutError())
        else:
            self._set(self.due)


class Mailbox(Struct, Generic[T], eq=False):
    """Items in order, then an end or an error."""

    alarm: Alarm
    """The reader's waits; it may be other mailboxes' after this one."""
    high_water: int = 256 * 1024
    """What may wait, in the unit of put's size, before the writer is asked to pause."""
    on_full: Callable[[], None] | None = None
    """Called when more than ``high_water`` waits."""
    size: int = 0
    """What waits to be taken, in the unit of put's size."""
    closed: bool = False
    """An end or an error was put: nothing more will come."""
    items: list[T] = []
    """What waits to be taken."""
    error: BaseException | None = None
    """With which it ended; the reader hears of it after the items."""
    tap: Callable[[T], bool] | None = None
    """Whom items are given to instead of being kept, as long as it says True; see `pour`."""
    paused: bool = False
    """Its writer was asked to."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} size={self.size} closed={self.closed}>"

    def put(self, item: T, size: int = 1) -> None:
        """Add an item; after an end it is dropped."""
        if self.closed:
            return
        if self.tap is not None:
            if not self.tap(item):
                self.tap = None
                self.alarm.wake()
            return
        self.items.append(item)
        self.size += size
        if self.size > self.high_water and not self.paused:
            self.paused = True
            self.full()
        self.alarm.wake()

    def end(self, error: BaseException | None = None) -> None:
        """No more items; with ``error``, the reader gets it after the items before it. Only the first end counts."""
        if not self.closed:
            self.closed = True
            self.error = error
            if not self.items:  # else they have woken the reader
                self.alarm.wake()

    async def take(self, until: float) -> list[T]:
        """Everything that has come, in order; ``[]`` after the end.

        Waits until something comes. Raises TimeoutError at ``until`` (the loop's time), or the error of ``end``.
        """
        while not self.items:
            if self.closed:
                if self.error is not None:
                    raise self.error
                return []
            await self.alarm.wait(until)
        return self.taken()

    def taken(self) -> list[T]:
        """Everything that has come, without waiting."""
        items, self.items, self.size = self.items, [], 0
        if self.paused:
            self.paused = False
            self.drained()
        return items

    def full(self) -> None:
        """More than ``high_water`` waits."""
        if self.on_full is not None:
            self.on_full()

    def drained(self) -> None:
        """It was taken; nothing here, for who can pause its writer."""

    async def pour(self, tap: Callable[[T], bool], until: float) -> None:
        """Have ``tap`` called with each item as it is put, instead of waking the reader for it.

        Returns when ``tap`` says False, when the end is there, and at once where items wait already: `take` goes on.
        Raises TimeoutError at ``until`` (the loop's time), which ``tap`` may put off: `Alarm.due`.
        """
        if self.items or self.closed:
            return
        self.tap = tap
        try:
            await self.alarm.wait(until)
        finally:
            self.tap = None

    def stop_timer(self) -> None:
        """Drop the timer; for whoever stops reading before the end."""
        self.alarm.stop()
