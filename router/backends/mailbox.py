"""From a protocol's callbacks to the task of one request: a buffer with one writer, one reader and a time limit.

asyncio.Queue with asyncio.timeout would cost a task wake-up an item and a timer a wait. Here everything that
arrived since the last wait is taken at once, and one timer serves the whole answer: it is set when it must be, and
when it fires early, it sets itself again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Items in order, then an end or an error."""

    __slots__ = (
        "_due", "_ended", "_error", "_items", "_loop", "_on_drained", "_on_full", "_paused", "_size", "_tap", "_timer",
        "_waiter", "high_water",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        high_water: int = 256 * 1024,
        on_full: Callable[[], None] | None = None,
        on_drained: Callable[[], None] | None = None,
    ) -> None:
        """``on_full`` is called when more than ``high_water`` (in the unit of put's size) waits, ``on_drained``
        when it was taken: pause and resume of the writer.
        """
        self._loop = loop
        self._items: list[T] = []
        self._size = 0
        self._ended = False
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._tap: Callable[[T], bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._paused = False
        self.high_water = high_water
        self._on_full = on_full
        self._on_drained = on_drained

    @property
    def size(self) -> int:
        """What waits to be taken, in the unit of put's size."""
        return self._size

    @property
    def closed(self) -> bool:
        """An end or an error was put: nothing more will come."""
        return self._ended

    @property
    def complete(self) -> bool:
        """It ended well and everything was taken: the next `take` would give ``[]``."""
        return self._ended and self._error is None and not self._items

    def put(self, item: T, size: int = 1) -> None:
        """Add an item; after an end it is dropped."""
        if self._ended:
            return
        if self._tap is not None:
            if not self._tap(item):
                self._tap = None
                self.wake()
            return
        self._items.append(item)
        self._size += size
        if self._size > self.high_water and not self._paused and self._on_full is not None:
            self._paused = True
            self._on_full()
        self.wake()

    def end(self, error: BaseException | None = None) -> None:
        """No more items; with ``error``, the reader gets it after the items before it. Only the first end counts."""
        if not self._ended:
            self._ended = True
            self._error = error
            self.wake()

    def wake(self) -> None:
        """End the reader's `wait` without an item: it has something else to look at."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self, until: float) -> None:
        """Until an item or the end is there, or `wake` was called; takes nothing.

        Raises TimeoutError at ``until`` (the loop's time), or the error of ``end`` if nothing came before it.
        """
        if not self._items and not self._ended:
            await self._wait(until)
        if self._error is not None and not self._items:
            self.stop_timer()
            raise self._error

    async def take(self, until: float) -> list[T]:
        """Everything that has come, in order; ``[]`` after the end.

        Waits until something comes. Raises TimeoutError at ``until`` (the loop's time), or the error of ``end``.
        """
        while not self._items and not self._ended:
            await self._wait(until)
        if self._items:
            items, self._items, self._size = self._items, [], 0
            if self._paused:
                self._paused = False
                if self._on_drained is not None:
                    self._on_drained()
            return items
        self.stop_timer()
        if self._error is not None:
            raise self._error
        return []

    async def pour(self, tap: Callable[[T], bool], until: float) -> None:
        """Have ``tap`` called with each item as it is put, instead of waking the reader for it.

        Returns when ``tap`` says False, when the end is there, and at once where items wait already: `take` goes on.
        Raises TimeoutError at ``until`` (the loop's time), which ``tap`` may `postpone`.
        """
        if self._items or self._ended:
            return
        self._tap = tap
        try:
            await self._wait(until)
        finally:
            self._tap = None

    def postpone(self, until: float) -> None:
        """The wait under way ends at ``until``, which is no sooner than before."""
        self._due = until

    def stop_timer(self) -> None:
        """Drop the timer; for whoever stops reading before the end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self, until: float) -> asyncio.Future[None]:
        # A reader that is cancelled leaves a future behind that is done: `wake` and the timer pass it over.
        self._due = until
        if self._timer is None or self._timer.when() > until:
            self.stop_timer()
            self._timer = self._loop.call_at(until, self._expire)
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def _expire(self) -> None:
        self._timer = None
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self._loop.time() >= self._due:
            waiter.set_exception(TimeoutError())
        else:
            self._timer = self._loop.call_at(self._due, self._expire)
