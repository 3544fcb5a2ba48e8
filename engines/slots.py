"""Permits to an engine's slots, first come first served.

llama.cpp would queue what its slots can't take, but there a request can only be cancelled once its
turn has come, and nobody can count the queue. So the queue stands here, in front. A request may
need several slots at once (several choices); the head of the line waits for all of them and nobody
overtakes it, so that it can't starve.

Not thread-safe: one event loop owns it.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Slots:
    """A FIFO semaphore whose permits are taken several at a time."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.free = capacity
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return len(self._line)

    async def acquire(self, count: int) -> None:
        """Take ``count`` permits, at most the capacity; a cancelled wait takes none.

        Raises what ``fail`` was given.
        """
        if not self._line and count <= self.free:
            self.free -= count
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (count, turn)
        self._line.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if entry in self._line:
                self._line.remove(entry)
                self._hand_out()
            elif not turn.cancelled() and turn.exception() is None:
                self.release(count)  # cancelled in the turn of the loop in which the permits came
            raise

    def release(self, count: int) -> None:
        """Give ``count`` permits back."""
        self.free += count
        self._hand_out()

    def fail(self, error: Exception) -> None:
        """End every wait with ``error``."""
        line, self._line = self._line, deque()
        for _, turn in line:
            if not turn.done():
                turn.set_exception(error)

    def _hand_out(self) -> None:
        while self._line:
            count, turn = self._line[0]
            if not turn.done():
                if count > self.free:
                    return
                self.free -= count
                turn.set_result(None)
            self._line.popleft()
