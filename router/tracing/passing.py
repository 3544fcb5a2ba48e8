"""No spans: the client's trace headers go on to the providers that are to hear them, as they came."""

from __future__ import annotations

import re
from collections.abc import Mapping

from router.backends.base import Answer
from router.errors import ApiError, Fault
from router.events import Event, RequestDone
from router.tracing import Arrival, Sent

_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?")
_STATE = re.compile(r"[ -~\t]{1,512}")
"""W3C Trace Context, section 3.3.1.5: 512 characters are what everybody should pass on."""


class Passing:
    """Makes what goes with each request."""

    def __init__(self, hearing: frozenset[str]) -> None:
        """``hearing``: the providers' names."""
        self._hearing = hearing

    def begin(self, arrival: Arrival) -> Passed:
        """A request came."""
        return Passed(_lines(arrival.headers or {}), self._hearing)

    async def close(self) -> None:
        """Nothing waits."""


class Passed:
    """One request's headers; a Trace without a span."""

    __slots__ = ("_hearing", "_lines", "id")

    def __init__(self, lines: bytes, hearing: frozenset[str]) -> None:
        self.id: str | None = None
        self._lines = lines
        self._hearing = hearing

    def attempt(self, sent: Sent) -> _Attempt:
        """The headers, if this provider is to hear them."""
        return _Attempt(self._lines if sent.provider in self._hearing else b"")

    def note(self, event: Event) -> None:
        """Nobody is told."""

    def refuse(self, error: ApiError) -> None:
        """Nobody is told."""

    def end(self, done: RequestDone) -> None:
        """Nobody is told."""


class _Attempt:
    __slots__ = ("headers",)

    def __init__(self, headers: bytes) -> None:
        self.headers = headers

    def end(self, answer: Answer | None, fault: Fault | None, now: float, *, good: bool) -> None:
        """Nobody is told."""


def _lines(headers: Mapping[str, str]) -> bytes:
    """``traceparent`` and ``tracestate`` as lines of a head; nothing where the first isn't one."""
    parent = headers.get("traceparent", "").strip()
    if _PARENT.fullmatch(parent) is None:
        return b""
    lines = f"traceparent: {parent}\r\n"
    state = headers.get("tracestate", "").strip()
    if _STATE.fullmatch(state) is not None:
        lines += f"tracestate: {state}\r\n"
    return lines.encode("ascii")
