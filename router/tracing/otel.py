"""Spans by OpenTelemetry's SDK. Prompts, answers and keys are in none of them.

A span's times are the router's own, taken where things happened; the SDK's clock is never asked. Spans are sent by a
thread of the SDK's, in batches; where they can't be sent they are dropped and the log says so, and no request notices.
Only ``traceparent`` and ``tracestate`` are read and sent: baggage, which may say anything of a client, is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from importlib import metadata
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from router.backends.base import Answer, Told
from router.backends.http.dial import origin_of
from router.clock import Clock
from router.config.schema import Config
from router.config.schema import Tracing as Settings
from router.errors import ApiError, Fault
from router.events import (
    Event,
    Fallback,
    Hedge,
    Queued,
    Recovery,
    RequestDone,
    Retry,
    RetryRefused,
)
from router.tracing import Arrival, Sent
from router.wire.operation import Operation

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

_log = logging.getLogger(__name__)

FLUSH_S = 3.0
"""For what waits to be sent at the end; a collector takes milliseconds, and one that is away must not hold the exit."""

SERVICE = "nenya"
SCOPE = "nenya"
MOST_CHARS = 256
"""Of what a client or an upstream made up: a model's name, an error's code."""

OPERATIONS: Mapping[Operation, str] = MappingProxyType(
    {
        Operation.CHAT: "chat",
        Operation.COMPLETIONS: "text_completion",
        Operation.EMBEDDINGS: "embeddings",
    }
)
"""OpenTelemetry's words for them."""

EVENTS: Mapping[type, str] = MappingProxyType(
    {
        Fallback: "nenya.fallback",
        Hedge: "nenya.hedge",
        Queued: "nenya.queued",
        Recovery: "nenya.recovery",
        Retry: "nenya.retry",
        RetryRefused: "nenya.retry_refused",
    }
)
"""What becomes an event of the request's span, with the event's fields."""

_GONE = frozenset({"ok", "client_gone"})
"""Outcomes that are no errors of ours."""

_propagator = TraceContextTextMapPropagator()


def start(config: Config, clock: Clock, provider: trace.TracerProvider | None) -> OtelTracing:
    """Spans by ``provider``, which stays its owner's; without one, sent as the config says."""
    if provider is not None:
        return OtelTracing(provider, config, clock)
    settings = config.tracing or Settings()
    exporter = OTLPSpanExporter(endpoint=settings.endpoint, headers=settings.headers or None)
    ratio = settings.sample_ratio
    # A sampler of None leaves it to OTEL_TRACES_SAMPLER.
    sampler = ParentBasedTraceIdRatio(ratio) if ratio is not None else None
    own = TracerProvider(sampler=sampler, resource=_resource(settings), shutdown_on_exit=False)
    own.add_span_processor(BatchSpanProcessor(exporter))

    return OtelTracing(own, config, clock, stop=own.shutdown)


def _resource(settings: Settings) -> Resource:
    named = OTELResourceDetector().detect().attributes.get(SERVICE_NAME)
    attributes = {SERVICE_NAME: settings.service_name or named or SERVICE}
    with contextlib.suppress(metadata.PackageNotFoundError):  # Run from a checkout.
        attributes["service.version"] = metadata.version("nenya")
    return Resource.create(attributes)


class OtelTracing:
    """Makes spans."""

    def __init__(
        self,
        provider: trace.TracerProvider,
        config: Config,
        clock: Clock,
        stop: Callable[[], object] | None = None,
    ) -> None:
        """``stop`` sends what waits and returns; None where that is another's business."""
        self._tracer = provider.get_tracer(SCOPE)
        self.clock = clock
        self.deaf = frozenset(n for n, p in config.providers.items() if p.trace_headers is False)
        """Providers that hear of no trace."""
        self.addresses = {name: _address(one.base_url) for name, one in config.providers.items()}
        self._stop = stop

    def begin(self, arrival: Arrival) -> OtelTrace:
        """A request came: its span begins, under its client's if it named one."""
        return OtelTrace(self, arrival)

    def start_span(
        self,
        name: str,
        context: contexts.Context,
        kind: SpanKind,
        attributes: dict[str, AttributeValue],
        start_ns: int,
    ) -> Span:
        """A span; one that records nothing where an embedder's processor broke, which must not cost a request."""
        try:
            return self._tracer.start_span(
                name, context, kind=kind, attributes=attributes, start_time=start_ns
            )
        except Exception:  # noqa: BLE001
            _log.exception("a span could not be started")
            return trace.INVALID_SPAN

    async def close(self) -> None:
        """Send what waits, for FLUSH_S at most."""
        stop, self._stop = self._stop, None
        if stop is None:
            return
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def work() -> None:
            stop()
            try:
                loop.call_soon_threadsafe(done.set)
            except RuntimeError:  # Nobody waits any more: the loop is closed.
                return

        threading.Thread(target=work, name="nenya-traces", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_S):
                await done.wait()
        except TimeoutError:
            _log.warning("traces could not be sent within %g s; the last are lost", FLUSH_S)


class OtelTrace:
    """One request's span."""

    __slots__ = ("_context", "_operation", "_origin_s", "_span", "_streams", "_tracing", "id")

    def __init__(self, tracing: OtelTracing, arrival: Arrival) -> None:
        clock = tracing.clock
        self._tracing = tracing
        self._operation = OPERATIONS[arrival.operation]
        self._streams = arrival.request is not None and bool(arrival.request.stream)
        self._origin_s = clock.wall() - clock.now()
        """Add it to monotonic seconds to have those since the epoch."""
        self._span = tracing.start_span(
            self._operation,
            _propagator.extract(arrival.headers or {}, contexts.get_current()),
            SpanKind.SERVER,
            _asked(arrival, self._operation),
            self._ns(arrival.received_at),
        )
        self._context = trace.set_span_in_context(self._span)
        known = self._span.get_span_context()
        self.id = trace.format_trace_id(known.trace_id) if known.is_valid else None

    def attempt(self, sent: Sent) -> OtelAttempt:
        """Its span begins."""
        tracing = self._tracing
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": self._operation,
            "gen_ai.provider.name": sent.provider,
            "gen_ai.request.model": sent.model,
            "nenya.target": sent.target,
            "nenya.attempt": sent.number,
            "nenya.attempt.reason": sent.reason,
        }
        span = tracing.start_span(
            f"{self._operation} {sent.model}",
            self._context,
            SpanKind.CLIENT,
            attributes | tracing.addresses.get(sent.provider, {}),
            self._ns(sent.since),
        )
        hears = sent.provider not in tracing.deaf
        since = sent.since if self._streams else None
        return OtelAttempt(span, _lines(span) if hears else b"", since, self._ns)

    def note(self, event: Event) -> None:
        """An event of the span, if it is one of EVENTS."""
        name = EVENTS.get(type(event))
        if name is not None and self._span.is_recording():
            now = self._tracing.clock.now()
            self._span.add_event(name, _fields(event), self._ns(now))

    def refuse(self, error: ApiError) -> None:
        """It ended before anybody could be asked."""
        self._over(error.error.code or error.error.type, error.status)

    def end(self, done: RequestDone) -> None:
        """It is over, now."""
        span = self._span
        if span.is_recording():
            told: dict[str, AttributeValue | None] = {
                "gen_ai.provider.name": done.provider or None,
                "gen_ai.response.time_to_first_chunk": done.first_token_s
                if self._streams
                else None,
                "nenya.target": done.target or None,
                "nenya.attempts": done.attempts,
                "nenya.overhead_s": done.overhead_s,
                "nenya.cost_usd": done.cost_usd,
                "nenya.burnt.input_tokens": done.burnt_input_tokens,
                "nenya.burnt.output_tokens": done.burnt_output_tokens,
                **_usage(done.input_tokens, done.cached_input_tokens, done.output_tokens),
            }
            span.set_attributes(_known(told))
            span.update_name(f"{self._operation} {done.model}")
        self._over(done.outcome, done.status)

    def _over(self, outcome: str, status: int) -> None:
        span = self._span
        outcome = outcome[:MOST_CHARS]
        span.set_attribute("nenya.outcome", outcome)
        span.set_attribute("http.response.status_code", status)
        if outcome not in _GONE:
            span.set_attribute("error.type", outcome)
        if status >= 500:
            # The client's own mistakes are no errors of a server's span (semantic conventions for HTTP).
            span.set_status(Status(StatusCode.ERROR))
        _end(span, self._ns(self._tracing.clock.now()))

    def _ns(self, at: float) -> int:
        return int((at + self._origin_s) * 1e9)


class OtelAttempt:
    """One attempt's span."""

    __slots__ = ("_ns", "_since", "_span", "headers")

    def __init__(
        self, span: Span, headers: bytes, since: float | None, ns: Callable[[float], int]
    ) -> None:
        """``since``: when a stream was asked for; None where the answer comes in one piece."""
        self.headers = headers
        self._span = span
        self._since = since
        self._ns = ns

    def end(self, answer: Answer | None, fault: Fault | None, now: float, *, good: bool) -> None:
        """It is over."""
        span = self._span
        if answer is not None and span.is_recording():
            self._describe(answer.told())
        outcome = "ok" if good else "cancelled"
        if fault is not None:
            outcome = fault.kind.value
            span.set_attribute("error.type", outcome)
            if fault.status is not None:
                span.set_attribute("http.response.status_code", fault.status)
            span.set_status(Status(StatusCode.ERROR))
        span.set_attribute("nenya.attempt.outcome", outcome)
        _end(span, self._ns(now))

    def _describe(self, told: Told) -> None:
        span, facts = self._span, told.facts
        if facts.first_token_at is not None:
            span.add_event("nenya.first_token", timestamp=self._ns(facts.first_token_at))
            if self._since is not None:
                waited_s = facts.first_token_at - self._since
                span.set_attribute("gen_ai.response.time_to_first_chunk", waited_s)
        if told.model is not None:
            span.set_attribute("gen_ai.response.model", told.model[:MOST_CHARS])
        if told.finish_reasons:
            span.set_attribute("gen_ai.response.finish_reasons", told.finish_reasons)
        usage = _usage(facts.input_tokens, facts.cached_input_tokens, facts.output_tokens)
        span.set_attributes(_known(usage))


def _end(span: Span, at_ns: int) -> None:
    """End ``span``; that its processor broke must not cost a request."""
    try:
        span.end(at_ns)
    except Exception:  # noqa: BLE001
        _log.exception("a span could not be ended")


def _address(base_url: str) -> dict[str, AttributeValue]:
    origin = origin_of(base_url)
    return {"server.address": origin.host, "server.port": origin.port}


def _asked(arrival: Arrival, operation: str) -> dict[str, AttributeValue]:
    """What a request's span says from its beginning."""
    request = arrival.request
    asked: dict[str, AttributeValue | None] = {
        "gen_ai.operation.name": operation,
        "nenya.request_id": arrival.request_id,
        "nenya.key_id": arrival.key_id or None,
    }
    if arrival.headers is not None:
        path = f"/v1/{arrival.operation.value}"
        asked |= {
            "http.request.method": "POST",
            "http.route": path,
            "url.path": path,
            "url.scheme": "http",
        }
    if request is not None:
        choices = request.choices
        asked |= {
            "gen_ai.request.model": request.model[:MOST_CHARS] if request.model else None,
            "gen_ai.request.stream": bool(request.stream) or None,
            "gen_ai.request.max_tokens": request.output_limit,
            "gen_ai.request.choice.count": choices if choices != 1 else None,
        }
    return _known(asked)


def _usage(
    given: int | None, cached: int | None, written: int | None
) -> dict[str, AttributeValue | None]:
    return {
        "gen_ai.usage.input_tokens": given,
        "gen_ai.usage.cache_read.input_tokens": cached,
        "gen_ai.usage.output_tokens": written,
    }


def _known(attributes: Mapping[str, AttributeValue | None]) -> dict[str, AttributeValue]:
    return {name: value for name, value in attributes.items() if value is not None}


def _fields(event: Event) -> dict[str, AttributeValue]:
    """An event's fields; an enum is its value."""
    fields: dict[str, AttributeValue] = msgspec.to_builtins(event)
    return {f"nenya.{name}": value for name, value in fields.items()}


def _lines(span: Span) -> bytes:
    """The span's context as lines of a head."""
    known = span.get_span_context()
    if not known.is_valid:
        return b""
    trace_id, span_id = trace.format_trace_id(known.trace_id), trace.format_span_id(known.span_id)
    lines = f"traceparent: 00-{trace_id}-{span_id}-{known.trace_flags:02x}\r\n"
    if known.trace_state:
        lines += f"tracestate: {known.trace_state.to_header()}\r\n"
    return lines.encode("latin-1")
