"""Time as an argument: the router reads clocks only at its edges, and tests hand it theirs.

``now`` everywhere means monotonic seconds, the event loop's own; wall-clock time stamps only what people read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call to come."""

    def cancel(self) -> None:
        """Don't make it."""


class Clock(Protocol):
    """What the I/O shell knows of time."""

    def now(self) -> float:
        """Monotonic seconds, comparable with the running event loop's ``time()``."""

    def wall(self) -> float:
        """Seconds since the epoch."""

    async def sleep(self, seconds: float) -> None:
        """Let that long pass."""

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        """Have ``call`` called in the running loop once `now` is ``when``."""


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Monotonic seconds; asyncio's and uvloop's loops count from the same origin."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """``asyncio.sleep``."""
        await asyncio.sleep(seconds)

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        """The loop's ``call_at``, a millisecond late rather than early: uvloop rounds to whole ones."""
        return asyncio.get_running_loop().call_at(when + 0.001, call)
