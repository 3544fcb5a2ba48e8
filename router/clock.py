"""Time as an argument: the router reads clocks only at its edges, and tests hand it theirs.

``now`` everywhere means monotonic seconds, the event loop's own; wall-clock time stamps only what people read.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What the I/O shell knows of time."""

    def now(self) -> float:
        """Monotonic seconds, comparable with the running event loop's ``time()``."""

    def wall(self) -> float:
        """Seconds since the epoch."""

    async def sleep(self, seconds: float) -> None:
        """Let that long pass."""


class SystemClock:
    """The machine's clocks, read without a call of ours between: a request asks ten times."""

    now = staticmethod(time.monotonic)
    """asyncio's and uvloop's loops count from the same origin."""
    wall = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        """``asyncio.sleep``."""
        await asyncio.sleep(seconds)
