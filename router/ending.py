"""What is done together at the end of a turn of the event loop: first what is written, then the books.

A turn serves all whose bytes came since the last one. Each write to a peer that sleeps wakes it, which costs more than
the write does; many in a row find its machine awake. And code that runs many times in a row finds itself in the
processor's caches, where between two requests all of the router's other code ran.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Ending:
    """The end of this turn of the loop."""

    __slots__ = ("_calls", "_set", "_writes")

    def __init__(self) -> None:
        self._writes: list[Callable[[], None]] = []
        self._calls: list[Callable[[], None]] = []
        self._set = False

    def write(self, call: Callable[[], None]) -> None:
        """Have ``call`` write something."""
        if not self._set:
            self._set = True
            asyncio.get_running_loop().call_soon(self._end)
        self._writes.append(call)

    def later(self, call: Callable[[], None]) -> None:
        """Have ``call`` called behind all writes."""
        if not self._set:
            self._set = True
            asyncio.get_running_loop().call_soon(self._end)
        self._calls.append(call)

    def _end(self) -> None:
        writes, calls, self._writes, self._calls = self._writes, self._calls, [], []
        self._set = False
        for call in (*writes, *calls):
            try:
                call()
            except Exception as error:  # noqa: BLE001 - one request's end must not cost another its own
                _log.error("at the end of a request: %s", type(error).__qualname__)
