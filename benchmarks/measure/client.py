"""One request on the wire, and what its answer told, piece by piece.

It rides on the router's own connections to providers, which are lean enough that one core reads tens of thousands of
pieces a second; nothing of the router lies in between. What is kept of a piece is whether it held text and when it
came. Keys go into the head of a request and nowhere else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import msgspec
from msgspec import Raw, Struct

from benchmarks.measure.prompts import Message
from benchmarks.measure.records import OK, Record
from router.backends.http.connection import Connection, Exchange
from router.backends.http.dial import Dialer, origin_of
from router.backends.http.pool import Pool
from router.errors import Fault, FaultKind
from router.wire.sse import EventTooLong, Splitter, data_of, split

CONNECT_S = 10.0
MOST_CONNECTIONS = 100_000
"""Never the limit: that would be a closed loop by stealth. The system's own limit shows as failed connections."""
KEEP_ALIVE_S = 30.0
MOST_ERROR_BYTES = 64 * 1024
MOST_BODY_BYTES = 4 * 1024 * 1024
TIMEOUT = "timeout"
CONNECT = "connect"
CUT = "cut"
MALFORMED = "malformed"
ERROR = "error"
EMPTY = "empty"


class BadUrl(ValueError):  # noqa: N818 - the name says the state
    """No server can be at this URL; says why."""


class Refused(Exception):  # noqa: N818 - read as a sentence where it is caught
    """An answer that isn't one: its kind for the books, and the server's words for people."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


class _Delta(Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: Raw = Raw()  # msgspec reads Raw | None as null alone


class _Choice(Struct, frozen=True):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Details(Struct, frozen=True):
    cached_tokens: int | None = None


class Usage(Struct, frozen=True):
    """What a server says it took."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that it didn't have to compute."""
        details = self.prompt_tokens_details
        return (details.cached_tokens if details is not None else None) or 0


class _Chunk(Struct, frozen=True):
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: Raw = Raw()


class _Words(Struct, frozen=True):
    message: str | None = None


class _Error(Struct, frozen=True):
    error: _Words | str | None = None
    message: str | None = None
    detail: str | None = None


_decode = msgspec.json.Decoder(_Chunk).decode
_DONE = b"[DONE]"
_NULL = b"null"


class Asking(Struct, frozen=True):
    """What all requests of a run have in common."""

    model: str
    limit_field: str = "max_tokens"
    """The name that the answer's limit has: the one every server knows; OpenAI's newest want max_completion_tokens."""
    extra: Mapping[str, object] = {}
    """Fields that the user adds."""

    def body(self, messages: list[Message], limit: int, *, stream: bool = True) -> bytes:
        """A request's body."""
        fields: dict[str, object] = {
            "model": self.model, "messages": messages, self.limit_field: limit, "stream": stream,
        }  # fmt: skip
        if stream:
            fields["stream_options"] = {"include_usage": True}
        fields.update(self.extra)
        return msgspec.json.encode(fields)


class Endpoint:
    """A server and the key for it. Owned by one event loop."""

    def __init__(self, url: str, key: str | None) -> None:
        """``url`` with or without ``/v1``. Raises BadUrl."""
        try:
            origin = origin_of(url.rstrip("/").removesuffix("/v1"))
        except ValueError as error:
            raise BadUrl(f"{url}: {error}".replace("base_url", "it")) from None
        if key is not None and not (key.isascii() and key.isprintable()):
            raise BadUrl("the key has characters that a header can't hold")
        self.url = f"{'https' if origin.tls else 'http'}://{origin.authority}{origin.path}"
        lines = [
            f"host: {origin.authority}",
            "accept-encoding: identity",
            "user-agent: nenya-bench",
        ]
        if key is not None:
            lines.append(f"authorization: Bearer {key}")
        self._path = origin.path
        self._lines = "\r\n".join(lines)
        self._post = (
            f"POST {origin.path}/v1/chat/completions HTTP/1.1\r\n{self._lines}\r\n"
            "content-type: application/json\r\naccept: text/event-stream\r\ncontent-length: "
        ).encode()
        self._pool = Pool(
            asyncio.get_running_loop(),
            Dialer(origin, private_network=True),
            max_connections=MOST_CONNECTIONS,
            keep_alive_s=KEEP_ALIVE_S,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()

    async def get(self, path: str, until: float) -> bytes:
        """The body of a 200 at ``path``. Raises Refused, at ``until`` (the loop's time) too."""
        head = f"GET {self._path}{path} HTTP/1.1\r\n{self._lines}\r\n\r\n".encode()
        return await self._whole(head, b"", until)

    async def post(self, body: bytes, until: float) -> bytes:
        """The body of a 200 to a request for a whole answer. Raises Refused, at ``until`` too."""
        return await self._whole(self._post + b"%d\r\n\r\n" % len(body), body, until)

    async def _whole(self, head: bytes, body: bytes, until: float) -> bytes:
        exchange = await self._sent(head, body, until)
        try:
            return await _body(exchange, MOST_BODY_BYTES, until)
        except (Fault, TimeoutError) as error:
            raise _told(error) from error
        finally:
            exchange.leave()

    async def stream(self, body: bytes, reading: Reading, patience_s: float) -> None:
        """Ask, and read the answer to its end. Raises Refused; what had come by then is in ``reading``."""
        until = asyncio.get_running_loop().time() + patience_s
        head = self._post + b"%d\r\n\r\n" % len(body)
        reading.sent()
        exchange = await self._sent(head, body, until)
        try:
            kind = exchange.headers.get("content-type", "")
            if not kind.lower().startswith("text/event-stream"):
                raise _no_stream(await _body(exchange, MOST_ERROR_BYTES, until))
            while not reading.done:
                pieces = await exchange.take(until)
                if not pieces:
                    reading.end()
                    return
                reading.feed(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        except (Fault, TimeoutError) as error:
            raise _told(error) from error
        finally:
            exchange.leave(whole=reading.done)

    async def _sent(self, head: bytes, body: bytes, until: float) -> Exchange:
        """The exchange, whose head is there and good. Raises Refused."""
        connection = self._pool.take()
        for fresh in (False, True):
            if connection is None or fresh:
                connection = await self._connection(until)
            exchange = connection.send(head, [body])
            try:
                await exchange.head(until)
            except (Fault, TimeoutError) as error:
                exchange.leave()
                if fresh or not exchange.stale:  # else the server had closed it while it was idle
                    raise _told(error) from error
            except BaseException:
                exchange.leave()
                raise
            else:
                break
        if exchange.status >= 300:
            try:
                raise await _refusal(exchange, until)
            finally:
                exchange.leave()
        return exchange

    async def _connection(self, until: float) -> Connection:
        limit = min(until, asyncio.get_running_loop().time() + CONNECT_S)
        try:
            return await self._pool.acquire(limit, fresh=True)
        except TimeoutError:
            raise Refused(CONNECT, "no connection within 10 s") from None
        except Fault as fault:
            raise Refused(CONNECT, fault.message.replace("the provider", "the server")) from fault


class Tally:
    """What all answers of a stage have brought so far."""

    __slots__ = ("firsts", "pieces")

    def __init__(self) -> None:
        self.pieces = 0
        self.firsts: list[tuple[float, float]] = []
        """When each first token came, and its TTFT; in order."""


class Reading:
    """What an answer tells while it comes; times by ``clock``, seconds since ``zero``."""

    __slots__ = (
        "_clock",
        "_last",
        "_splitter",
        "_tally",
        "_texts",
        "_zero",
        "done",
        "finished",
        "record",
    )

    def __init__(
        self, record: Record, zero: float, *, tally: Tally | None = None, keep_text: bool = False
    ) -> None:
        self.record = record
        self.done = False
        self.finished = False
        """A finish_reason came: the answer is whole even where no [DONE] follows."""
        self._zero = zero
        self._clock = time.perf_counter
        self._splitter = Splitter()
        self._last = 0.0
        self._tally = tally if tally is not None else Tally()
        self._texts: list[str] | None = [] if keep_text else None

    @property
    def text(self) -> str:
        """The answer, where it was to be kept."""
        return "".join(self._texts or ())

    def sent(self) -> None:
        """The client turns to the request: from here on, a connection to be opened is the server's time, too."""
        self.record.sent_s = self._clock() - self._zero

    def feed(self, data: bytes) -> None:
        """A segment of the answer came. Raises Refused."""
        now = self._clock() - self._zero
        try:
            for event in split(self._splitter.feed(data)):
                found = data_of(event)
                if found is None:
                    continue
                if found == _DONE:
                    self.done = True
                    return
                self._read(_decode(found), now)
        except (msgspec.MsgspecError, UnicodeDecodeError, EventTooLong) as error:
            raise Refused(MALFORMED, "a piece of the answer isn't OpenAI's format") from error

    def end(self) -> None:
        """The connection's body ended. Raises Refused where the answer isn't whole."""
        rest = self._splitter.flush()
        if rest:
            self.feed(b"\n\n")
        if not (self.done or self.finished):
            raise Refused(CUT, "the answer ended without a finish_reason or [DONE]")
        self.done = True

    def _read(self, chunk: _Chunk, now: float) -> None:
        record = self.record
        if _there(chunk.error):
            raise Refused(ERROR, _said(b'{"error":%b}' % bytes(chunk.error)))
        for choice in chunk.choices or ():
            delta = choice.delta
            if delta is not None:
                text = delta.content or delta.reasoning_content or delta.reasoning or delta.refusal
                if text or _there(delta.tool_calls):
                    self._piece(now)
                    if self._texts is not None and text:
                        self._texts.append(text)
            if choice.finish_reason is not None:
                record.finish = choice.finish_reason
                self.finished = True
        usage = chunk.usage
        if usage is not None and usage.completion_tokens is not None:
            record.by_usage = True
            record.output_tokens = usage.completion_tokens
            record.input_tokens = usage.prompt_tokens or record.input_tokens
            record.cached_tokens = usage.cached_tokens

    def _piece(self, now: float) -> None:
        record = self.record
        record.pieces += 1
        self._tally.pieces += 1
        if record.first_s is None:
            record.first_s = now
            self._tally.firsts.append((now, now - record.due_s))
        else:
            record.gaps_s.append(now - self._last)
        self._last = now
        record.end_s = now

    def conclude(self, outcome: str) -> None:
        """The request is over, one way or another."""
        record = self.record
        now = self._clock() - self._zero
        if outcome == OK and record.first_s is None:
            outcome = EMPTY
        if outcome != OK or not record.end_s:
            record.end_s = now
        if not record.by_usage:
            record.output_tokens = record.pieces
        record.outcome = outcome


async def _body(exchange: Exchange, most: int, until: float) -> bytes:
    parts, size = [], 0
    while size < most and (pieces := await exchange.take(until)):
        parts += pieces
        size += sum(map(len, pieces))
    return b"".join(parts)


async def _refusal(exchange: Exchange, until: float) -> Refused:
    try:
        body = await _body(exchange, MOST_ERROR_BYTES, until)
    except (Fault, TimeoutError):
        body = b""
    return Refused(str(exchange.status), _said(body))


def _no_stream(body: bytes) -> Refused:
    words = _said(body)
    return Refused(ERROR if words else MALFORMED, words or "the answer is no stream of events")


def _told(error: Fault | TimeoutError) -> Refused:
    if isinstance(error, TimeoutError):
        return Refused(TIMEOUT, "no answer in time")
    kind = MALFORMED if error.kind is FaultKind.MALFORMED else CUT
    return Refused(kind, error.message.replace("the provider", "the server"))


def _there(value: Raw) -> bool:
    found = bytes(value)
    return bool(found) and found != _NULL


def _said(body: bytes) -> str:
    """The server's own words in an error's body; empty where it has none."""
    try:
        found = msgspec.json.decode(body, type=_Error)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""
    if isinstance(found.error, _Words):
        return found.error.message or ""
    return found.error or found.message or found.detail or ""
