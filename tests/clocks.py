"""A clock that tests turn by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class Timer:
    """A call to come."""

    def __init__(self, when, call) -> None:
        self.when, self.call, self.cancelled = when, call, False

    def cancel(self) -> None:
        self.cancelled = True


class ManualClock:
    """Time passes when somebody sleeps or a test says so."""

    def __init__(self, now: float = 1000.0, wall: float = 1_700_000_000.0) -> None:
        self._now = now
        self._wall = wall
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        """Let time pass, and make the calls that fall into it, each at its moment."""
        end = self._now + seconds
        while (timer := self._next()) is not None and timer.when <= end:
            self._pass(max(self._now, timer.when))
            timer.cancel()
            timer.call()
        self._pass(end)

    def advance_to_timer(self) -> bool:
        """Let time pass until the next call; False where none is to come."""
        timer = self._next()
        if timer is not None:
            self.advance(max(0.0, timer.when - self._now))
        return timer is not None

    async def run(self, coroutine):
        """Its result, with time passing whenever nothing happens without."""
        task = asyncio.ensure_future(coroutine)
        while not task.done():
            for _ in range(50):
                await asyncio.sleep(0)
            assert task.done() or self.advance_to_timer(), "it waits for nothing"
        return await task

    def call_at(self, when, call):
        timer = Timer(when, call)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    @property
    def timers(self) -> int:
        """Calls to come."""
        return sum(not timer.cancelled for _, _, timer in self._timers)

    def _next(self):
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        return self._timers[0][2] if self._timers else None

    def _pass(self, now: float) -> None:
        self._wall += now - self._now
        self._now = now

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
