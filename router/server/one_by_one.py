"""Work that holds the event loop for long: one piece of it in each of the loop's turns.

A hundred long prompts that have come at once would otherwise be decoded in one turn, and every stream would stand still
for the sum of it. So all that waits besides waits for one of them.
"""

from __future__ import annotations

import asyncio
from collections import deque


class OneByOne:
    """A line in which one is served each turn."""

    __slots__ = ("_taken", "_waiting")

    def __init__(self) -> None:
        self._taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Wait for a turn of the loop that nobody else has taken; where it is free, the one under way."""
        loop = asyncio.get_running_loop()
        if self._taken:
            place = loop.create_future()
            self._waiting.append(place)
            await place
        else:
            self._taken = True
            loop.call_soon(self._next, loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():  # else its task was cancelled
                place.set_result(None)
                loop.call_soon(self._next, loop)
                return
        self._taken = False
