"""Spans for OpenTelemetry: one a request, joined to its client's trace, and one an attempt, joined to its target's.

The dispatcher knows what stands here: a `Trace` goes with a request, or None where nobody wants one, and then nothing
is asked, built or sent. Who makes them is `otel`, which alone imports OpenTelemetry (the extra ``otel``), or
`passing`, which hands the client's own trace headers on.

Source: W3C Trace Context, level 1; OpenTelemetry's semantic conventions for generative AI and for HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import msgspec

from router.backends.base import Answer
from router.clock import Clock
from router.config.schema import Config
from router.errors import ApiError, ConfigError, Fault, Problem
from router.events import Event, RequestDone
from router.wire.operation import Operation
from router.wire.request import Request

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

LACKING = "needs a package that is not installed: pip install 'nenya[otel]'"
_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


class Arrival(msgspec.Struct, frozen=True):
    """A request as it came."""

    operation: Operation
    request: Request | None
    """None where its body could not be read."""
    request_id: str
    key_id: str
    received_at: float
    """Monotonic seconds."""
    headers: Mapping[str, str] | None
    """Its head's, found whatever the letters' case; None where it came by no HTTP."""


class Sent(msgspec.Struct, frozen=True):
    """An attempt as it is sent."""

    target: str
    provider: str
    model: str
    """Its name at the target."""
    number: int
    """Of the request's attempts, from 1."""
    reason: str
    """``first``; ``retry``: another failed; ``fallback``: the first of another model; ``hedge``: another is late;
    ``recovery``: the rest of a stream that broke."""
    since: float
    """Monotonic seconds."""


class AttemptTrace(Protocol):
    """One attempt's part of a trace."""

    headers: bytes
    """Lines for the head of what is sent, each with its end."""

    def end(self, answer: Answer | None, fault: Fault | None, now: float, *, good: bool) -> None:
        """It is over, by ``fault`` if there is one; neither that nor good: it was let go. ``answer`` is closed."""


class Trace(Protocol):
    """One request's part of a trace."""

    id: str | None
    """The trace's, for the log: 32 hexadecimal digits; None where there is none."""

    def attempt(self, sent: Sent) -> AttemptTrace:
        """An attempt begins."""

    def note(self, event: Event) -> None:
        """Something happened to the request."""

    def refuse(self, error: ApiError) -> None:
        """It ended before anybody could be asked."""

    def end(self, done: RequestDone) -> None:
        """It is over, now."""


class Tracing(Protocol):
    """Makes traces."""

    def begin(self, arrival: Arrival) -> Trace:
        """A request came."""

    async def close(self) -> None:
        """Send what waits to be sent, within bounds."""


def is_installed() -> bool:
    """Whether OpenTelemetry's SDK and its exporter are there."""
    try:
        return find_spec("opentelemetry.sdk.trace") is not None and find_spec(_EXPORTER) is not None
    except ModuleNotFoundError:  # not even their parents
        return False


def start(config: Config, clock: Clock, provider: TracerProvider | None = None) -> Tracing | None:
    """What the config asks for; None is nothing. ``provider``: the embedder's own, instead of one by the config.

    Raises ConfigError where OpenTelemetry isn't installed.
    """
    if config.tracing is None and provider is None:
        from router.tracing.passing import Passing  # noqa: PLC0415

        hearing = {n for n, p in config.providers.items() if p.trace_headers is True}
        return Passing(frozenset(hearing)) if hearing else None
    if not is_installed():
        raise ConfigError("tracing", [Problem(LACKING, "tracing")])
    from router.tracing import otel  # noqa: PLC0415

    return otel.start(config, clock, provider)
