"""How late the event loop is: a call that is due every EVERY_S, and when it comes.

Whatever holds the loop (a large body that is decoded, a pause of the collector, a machine without a free core) makes
every stream wait for as long, and shows in no other figure.
"""

from __future__ import annotations

import asyncio

from router.counters import Spread

EVERY_S = 0.1
"""A hold of h seconds is seen with a chance of h / EVERY_S, and whole or in part; ten calls a second cost nothing."""


class LoopLag:
    """Watches the running loop."""

    def __init__(self, spread: Spread) -> None:
        """``spread`` counts the seconds that each call came late."""
        self._spread = spread
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Watch the loop that runs now, until `stop`."""
        loop = asyncio.get_running_loop()

        def come(due: float) -> None:
            now = loop.time()
            self._spread.observe(max(0.0, now - due))
            self._timer = loop.call_at(now + EVERY_S, come, now + EVERY_S)

        self._timer = loop.call_later(EVERY_S, come, loop.time() + EVERY_S)

    def stop(self) -> None:
        """No call more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
