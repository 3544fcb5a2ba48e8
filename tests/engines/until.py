"""Waiting for what has no event to wait for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def until(condition: Callable[[], object], limit_s: float = 2.0) -> float:
    """Let the loop run until the condition holds; returns the seconds it took."""
    since = time.monotonic()
    while not condition():  # health and files have no events
        await asyncio.sleep(0.001)
        assert time.monotonic() < since + limit_s
    return time.monotonic() - since
