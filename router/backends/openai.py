"""Providers that speak OpenAI's dialect over HTTP: most of them, and every inference server.

A request goes out as the client wrote it but for the model's name and a wish for usage; headers of the client
never do. The answer comes back as bytes: streams through `http.relay`, whole answers after one decode that
validates them. Four clocks run (connect, first token, silence, the request's deadline), all of them on the
mailbox's one timer.

It retries nothing but a request that a kept connection lost before the provider can have seen it. RFC 9112 (9.3.1)
lets a client repeat what it can tell was never processed: the connection had been idle, the server closed it within
a round trip and sent no byte, which is what a keep-alive limit or a restart looks like. Should the server have seen
the request after all, a completion asked for twice costs tokens but changes nothing.

Source: OpenAI's published API specification; RFC 9112, section 9.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from types import MappingProxyType
from urllib.parse import urlsplit

import msgspec
from msgspec import Raw, Struct

from router.backends.base import Answer, Facts, Order, Sink, Told
from router.backends.http import limits, refusal
from router.backends.http.connection import Connection, Exchange
from router.backends.http.dial import Dialer, Origin, origin_of
from router.backends.http.head import Head
from router.backends.http.pool import Pool
from router.backends.http.relay import Relay, Usage, author_of
from router.config.schema import Provider
from router.errors import ConfigError, Fault, FaultKind, Problem
from router.wire import continuation, rewrite
from router.wire.alike import UNREADABLE
from router.wire.operation import Operation
from router.wire.record import Record

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""A whole answer: images and audio come as base64; text is never near."""

MAX_ERROR_BYTES = 64 * 1024
"""An error body that is longer is a page for people."""

ERROR_BODY_S = 2.0
"""The status alone says where the request goes next; its text isn't worth a longer wait."""

_FORMS: Mapping[str, continuation.Form] = MappingProxyType(
    {
        "mistral.ai": "prefix",
        "deepseek.com": "prefix",
        "openai.com": "message",
        "azure.com": "message",
        "anthropic.com": "message",
        "openrouter.ai": "message",
        "googleapis.com": "message",
        "groq.com": "message",
        "x.ai": "message",
    }
)
"""Of hosts that have another form than the open servers (vLLM, SGLang, TGI, llama.cpp), or refuse their parameter."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIXED_HEADERS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "x-request-id"}
)


Pieces = Sequence[bytes | memoryview]


class _Choice(Struct, frozen=True):
    finish_reason: str | None = None


class _Completion(Struct, frozen=True):
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: object = None


class _Embeddings(Struct, frozen=True):
    data: list[Raw] | None = None
    usage: Usage | None = None
    error: object = None

    @property
    def choices(self) -> list[_Choice]:
        """Whole as it came: what is counted is that there is something."""
        return [_Choice("stop")] if self.data else []


Decode = Callable[[bytes], _Completion | _Embeddings]

_DECODE: Mapping[Operation, Decode] = MappingProxyType(
    {
        Operation.CHAT: msgspec.json.Decoder(_Completion).decode,
        Operation.COMPLETIONS: msgspec.json.Decoder(_Completion).decode,
        Operation.EMBEDDINGS: msgspec.json.Decoder(_Embeddings).decode,
    }
)
"""What is looked for in a whole answer. Raises one of `UNREADABLE`."""


class _Prepared(Struct, frozen=True):
    """What doesn't change in an operation: how the heads of its requests begin, and what a whole answer is read by."""

    stream: bytes
    whole: bytes
    decode: Decode


class OpenAIBackend:
    """One provider."""

    def __init__(self, name: str, provider: Provider) -> None:
        """Opens nothing yet. Raises ConfigError where the provider's settings can't be sent."""
        self.name = name
        try:
            origin = origin_of(provider.base_url)
            self._prepared = {
                operation: _Prepared(
                    _lines(origin, provider, operation, "text/event-stream"),
                    _lines(origin, provider, operation, "application/json"),
                    _DECODE[operation],
                )
                for operation in Operation
            }
        except ValueError as error:
            raise ConfigError(
                f"provider {name}", [Problem(str(error), f"providers.{name}")]
            ) from error
        self._provider = provider
        self._form = _form(provider)
        self._secrets = _secrets(provider)
        self._dialer = Dialer(
            origin, private_network=provider.private_network, ca_file=provider.ca_file
        )
        self._pool: Pool | None = None

    def __repr__(self) -> str:
        return f"OpenAIBackend({self.name!r})"

    @property
    def in_use(self) -> int:
        """Connections that serve a request or are being opened."""
        return self._pool.in_use if self._pool is not None else 0

    async def open(self, order: Order) -> Answer:
        """Send the request; returns when the answer's head is there and good. Raises Fault."""
        prepared = self._prepared[order.request.operation]
        head, body = self._request(order, prepared)
        pool = self._pool or self._start()
        connection, fresh = pool.take(), False
        while True:
            if connection is None:
                connection = await self._acquire(pool, order, fresh=fresh)
            exchange = connection.send(head, body)
            until = connection.sent_at + order.limits.first_token_s
            until = until if until < order.deadline else order.deadline
            try:
                while (response := exchange.response) is None:
                    await exchange.turn(until)
                break
            except TimeoutError:
                exchange.leave()
                raise _late(order, FaultKind.TIMEOUT_FIRST_BYTE) from None
            except Fault:
                if fresh or not exchange.stale:
                    raise
                connection, fresh = None, True
            except BaseException:
                exchange.leave()
                raise
        if response.status >= 300 or (order.request.stream and not _is_stream(response)):
            raise await self._refused(exchange, response, order)
        return self._answer(exchange, response, order, prepared.decode, until)

    def _request(self, order: Order, prepared: _Prepared) -> tuple[bytes, Pieces]:
        """The head and the body that go out."""
        request = order.request
        streams = bool(request.stream)
        hide_usage = streams and not request.wants_usage
        body = rewrite.pieces_for_upstream(request, order.body, order.model, ask_usage=hide_usage)
        if order.said:
            body = self._going_on(body, order.said)
        size = 0
        for piece in body:
            size += len(piece)
        request_id = order.request_id
        named = b""
        if request_id.isascii() and request_id.isprintable():
            named = b"x-request-id: %b\r\n" % request_id.encode()
        lines = prepared.stream if streams else prepared.whole
        return b"%b%b%bcontent-length: %d\r\n\r\n" % (lines, named, order.headers, size), body

    def _answer(
        self, exchange: Exchange, response: Head, order: Order, decode: Decode, until: float
    ) -> Answer:
        """What comes behind a good head; its first byte by ``until``."""
        facts, request = Facts(), order.request
        if response.limits:
            facts.readings = limits.read(response.limits, time.time())
        if not request.stream:
            return WholeAnswer(
                exchange, response.headers, order, decode, self._secrets, facts, until
            )
        hide_usage = not request.wants_usage
        relay = Relay(hide_usage=hide_usage, choices=request.choices, secrets=self._secrets)
        return StreamAnswer(exchange, response.headers, order, relay, facts, until)

    async def close(self) -> None:
        """Close what is idle and cancel what runs."""
        if self._pool is not None:
            await self._pool.close()

    async def _acquire(self, pool: Pool, order: Order, *, fresh: bool) -> Connection:
        now = asyncio.get_running_loop().time()
        try:
            return await pool.acquire(
                min(now + order.limits.connect_s, order.deadline), fresh=fresh
            )
        except TimeoutError:
            raise _late(order, FaultKind.TIMEOUT_CONNECT) from None

    def _start(self) -> Pool:
        provider = self._provider
        self._pool = Pool(
            asyncio.get_running_loop(),
            self._dialer,
            max_connections=provider.max_connections,
            keep_alive_s=provider.keep_alive_s,
        )
        return self._pool

    async def _refused(self, exchange: Exchange, response: Head, order: Order) -> Fault:
        """What an answer means that has an error's status, or isn't the stream that was asked for."""
        body = await _error_body(exchange, order)
        if response.status < 300:
            if refusal.read(body) is not None:
                return refusal.in_answer(body, started=False, secrets=self._secrets)
            return Fault(FaultKind.MALFORMED, "the provider answered without a stream")
        wall = time.time()
        fault = refusal.of_status(
            response.status, response.headers, body, wall=wall, secrets=self._secrets
        )
        if response.limits:
            fault.readings = limits.read(response.limits, wall)
        return fault

    def _going_on(self, body: Pieces, said: str) -> Pieces:
        """``body`` with the answer's beginning, ``said``, in the provider's form."""
        return (continuation.with_beginning(b"".join(body), said, self._form),)


class StreamAnswer(Struct, eq=False):
    """A stream under way."""

    exchange: Exchange
    headers: Mapping[str, str]
    order: Order
    relay: Relay
    facts: Facts
    until: float
    """When it will have been silent for too long."""
    sink: Sink | None = None
    over: bool = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over={self.over}>"

    async def read(self) -> bytes:
        """The next whole events; see `base.Answer`."""
        relay = self.relay
        if not self.over and (relay.done or relay.fault is not None):
            self._conclude()  # `pour` heard the end.
        while not self.over:
            try:
                pieces = await self.exchange.take(self.until)
            except TimeoutError:
                blob = relay.end(self._timeout())
            except Fault as fault:
                blob = relay.end(fault)
            else:
                data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                blob = relay.feed(data) if data else relay.end()
            if relay.heard:
                self._note_time()
            if relay.done or relay.fault is not None:
                self._conclude()
            if blob:
                return blob
        failure, relay.fault = relay.fault, None
        if failure is not None:
            raise failure
        return b""

    async def pour(self, sink: Sink, record: Record | None = None) -> None:
        """Whole events as they come, behind the first that is read; see `base.Answer`."""
        relay = self.relay
        if self.over or not relay.started:
            return
        self.sink = sink
        relay.record(record)
        try:
            await self.exchange.pour(self._pass_on, self.until)
        except TimeoutError:
            return  # `read` looks whether it is still so.
        finally:
            self.sink = None
            relay.record(None)

    def _pass_on(self, data: bytes) -> bool:
        """What `read` does with a piece of the network, in the network's callback; whether more may come like this."""
        relay, sink = self.relay, self.sink
        assert sink is not None
        blob = relay.feed(data)
        if relay.heard:
            alarm, order = self.exchange.alarm, self.order
            until = alarm.time() + order.limits.idle_s
            if until > order.deadline:
                until = order.deadline
            self.until = alarm.due = until
        return (not blob or sink(blob)) and not relay.done and relay.fault is None

    def close(self) -> None:
        """Let go; the provider is cut off if it isn't done."""
        if not self.over:
            self.relay.fault = None
            self._conclude()

    def told(self) -> Told:
        """See `base.Answer`."""
        return Told(self.facts, *self.relay.told())

    def _note_time(self) -> None:
        now = self.exchange.alarm.time()
        if self.facts.first_token_at is None:
            self.facts.first_token_at = now
        order = self.order
        self.until = min(now + order.limits.idle_s, order.deadline)

    def _timeout(self) -> Fault:
        started = self.relay.started
        return _late(
            self.order, FaultKind.TIMEOUT_IDLE if started else FaultKind.TIMEOUT_FIRST_BYTE
        )

    def _conclude(self) -> None:
        self.over = True
        self.exchange.leave(whole=self.relay.done)
        self.relay.note(self.facts)


class WholeAnswer(Struct, eq=False):
    """An answer that comes in one piece."""

    exchange: Exchange
    headers: Mapping[str, str]
    order: Order
    decode: Decode
    secrets: tuple[str, ...]
    facts: Facts
    until: float
    """When it will have been silent for too long."""
    body: bytes = b""
    """What has come of it."""
    over: bool = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over={self.over}>"

    async def read(self) -> bytes:
        """The whole JSON, then ``b""``; see `base.Answer`."""
        if self.over:
            return b""
        exchange = self.exchange
        items = exchange.items
        if exchange.closed and len(items) == 1 and not exchange.paused and exchange.error is None:
            self.facts.first_token_at = exchange.alarm.time()
            body = items[0]
        else:
            try:
                body = await self._gathered()
            except TimeoutError:
                self.close()
                begun = self.facts.first_token_at is not None
                kind = FaultKind.TIMEOUT_IDLE if begun else FaultKind.TIMEOUT_FIRST_BYTE
                raise _late(self.order, kind) from None
            except Fault:
                self.close()
                raise
        self.over = True
        self.body = body
        self._check(body)
        return body

    async def pour(self, sink: Sink, record: Record | None = None) -> None:
        """Nothing: it is one piece; see `base.Answer`."""

    def close(self) -> None:
        """Let go; the provider is cut off if it isn't done."""
        if not self.over:
            self.over = True
            self.exchange.leave()

    def told(self) -> Told:
        """See `base.Answer`."""
        author = author_of(self.body)
        return Told(self.facts, author.model, tuple(author.reasons.values()))

    async def _gathered(self) -> bytes:
        """All of it, without the blank lines before it: some providers keep a wait alive by them. Raises TimeoutError,
        Fault.
        """
        exchange, order = self.exchange, self.order
        parts: list[bytes] = []
        size = 0
        while pieces := await exchange.take(self.until):
            for piece in pieces:
                if size or not piece.isspace():
                    size += len(piece)
                    parts.append(piece)
            if size > MAX_ANSWER_BYTES:
                raise Fault(FaultKind.MALFORMED, "the provider's answer is too large")
            if size:
                now = exchange.alarm.time()
                if self.facts.first_token_at is None:
                    self.facts.first_token_at = now
                self.until = min(now + order.limits.idle_s, order.deadline)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check(self, body: bytes) -> None:
        """Note what it tells. Raises Fault: it is no answer."""
        try:
            completion = self.decode(body)
        except UNREADABLE as error:
            if refusal.read(body) is not None:
                raise refusal.in_answer(body, started=False, secrets=self.secrets) from None
            raise Fault(FaultKind.MALFORMED, "the provider's answer is no completion") from error
        if completion.error:
            raise refusal.in_answer(body, started=False, secrets=self.secrets)
        choices = completion.choices
        if not choices:
            raise Fault(FaultKind.MALFORMED, "the provider's answer has nothing in it")
        finished = True
        for choice in choices:
            if choice.finish_reason is None:
                finished = False
        facts = self.facts
        facts.finished = finished
        if completion.usage is not None:
            completion.usage.note(facts)


async def _error_body(exchange: Exchange, order: Order) -> bytes:
    """What comes soon of an answer that is a refusal anyway."""
    until = min(exchange.alarm.time() + ERROR_BODY_S, order.deadline)
    body = b""
    try:
        while len(body) < MAX_ERROR_BYTES and (pieces := await exchange.take(until)):
            body += b"".join(pieces)
    except (TimeoutError, Fault):
        return body[:MAX_ERROR_BYTES]
    finally:
        exchange.leave()
    return body[:MAX_ERROR_BYTES]


def _is_stream(response: Head) -> bool:
    kind = response.headers.get("content-type", "text/event-stream")
    return kind.lower().startswith("text/event-stream")


def _late(order: Order, kind: FaultKind) -> Fault:
    if asyncio.get_running_loop().time() >= order.deadline:
        return Fault(FaultKind.DEADLINE, "the request's time is up")
    if kind is FaultKind.TIMEOUT_CONNECT:
        return Fault(kind, "no connection to the provider in time")
    if kind is FaultKind.TIMEOUT_FIRST_BYTE:
        return Fault(kind, "the provider sent nothing in time")
    return Fault(kind, "the provider's answer has stalled")


def _lines(origin: Origin, provider: Provider, operation: Operation, accept: str) -> bytes:
    """The part of a request's head that never changes. Raises ValueError for what can't stand in one."""
    fields = {
        "host": origin.authority,
        "user-agent": f"nenya/{_version()}",
        "content-type": "application/json",
        "accept": accept,
        "accept-encoding": "identity",
    }
    if provider.api_key is not None:
        fields["authorization"] = f"Bearer {provider.api_key}"
    for name, value in provider.headers.items():
        if name.lower() in _FIXED_HEADERS:
            raise ValueError(f"the header {name} is the router's own")
        fields[name.lower()] = value
    for name, value in fields.items():
        if not _TOKEN.fullmatch(name):
            raise ValueError("a header's name holds a character that it can't")
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"the header {name} holds a character that it can't")
    lines = [
        f"POST {origin.path}/{operation.value} HTTP/1.1",
        *(f"{k}: {v}" for k, v in fields.items()),
        "",
    ]
    return "\r\n".join(lines).encode("ascii")


def _form(provider: Provider) -> continuation.Form:
    """How it is asked to go on with an answer, by its config or else by its name."""
    if provider.continue_form is not None:
        return provider.continue_form
    host = urlsplit(provider.base_url).hostname or ""
    for domain, form in _FORMS.items():
        if host == domain or host.endswith(f".{domain}"):
            return form
    return "continue_final_message"


def _secrets(provider: Provider) -> tuple[str, ...]:
    """What must not be in any message: the key, and header values, for some providers take the key in one."""
    found = [provider.api_key or "", *provider.headers.values()]
    return tuple(secret for secret in found if len(secret) >= 6)


def _version() -> str:
    try:
        return metadata.version("nenya")
    except metadata.PackageNotFoundError:  # Run from a checkout.
        return "0"
