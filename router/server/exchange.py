"""One request and its answer, as bytes.

Stands for aiohttp's Request and Response. The head of an answer is made of one string and written in one piece with
the body's first bytes.

An answer is whole (``answer``), or a stream (``begin``, ``piece``..., ``end``), or an error (``refuse``), which
is right at any time: after the head of a stream it becomes an error event, and the connection is cut without the
stream's end, so that no client takes it for a whole one.
"""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec
from aiohttp import HttpVersion11, StreamReader, hdrs
from aiohttp.streams import EMPTY_PAYLOAD

from router.errors import ApiError
from router.server.long_body import LongBody
from router.server.screening import malformed, too_large, too_slow
from router.wire.completion import error_event
from router.wire.sse import DONE

if TYPE_CHECKING:
    from router.server.connection import Connection
    from router.server.heads import Head

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"

_UNSAFE = re.compile(r"[^\t\x20-\x7e\x80-\xff]")
"""What may not stand in a header's value (RFC 9110, section 5.5), CR and LF before all."""
_OURS = frozenset({
    "connection", "content-encoding", "content-length", "content-type", "date", "keep-alive", "openai-processing-ms",
    "openai-version", "set-cookie", "te", "trailer", "transfer-encoding", "upgrade", "x-request-id",
})  # fmt: skip
"""Headers that are this server's alone to say, whatever an upstream said."""
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus
}
_OK_LINE = _STATUS_LINES[200]
_LAST_CHUNK = b"0\r\n\r\n"
_NUMBERS = tuple(map(str, range(1000)))
_THREE = tuple(f"{n:03}" for n in range(1000))
"""Small numbers, and those with three digits: looking one up takes a tenth of writing it."""
_LAST_LINE = "\r\n"
_CLOSE = "connection: close\r\n\r\n"
"""The end of a head, and that of the connection's last one."""
_OPENAI_VERSION = "2020-10-01"
"""The only version OpenAI's API ever named."""


LONG_BODY_BYTES = 128 * 1024
"""Reading so much, or decoding it, holds the event loop for 0.1 to 0.3 ms, which a hundred at once would multiply."""


class ClientGone(ConnectionError):  # noqa: N818 - names the event
    """Nobody is there to write to."""


class BrokenBody(Exception):  # noqa: N818 - names the event
    """A request's body is no HTTP."""


class Dates:
    """The Date header's value, made once a second."""

    __slots__ = ("lines", "text", "until")

    def __init__(self) -> None:
        self.until = 0.0
        """When it is to be made anew; monotonic seconds."""
        self.text = ""
        """As RFC 9110 wants it."""
        self.lines = ""
        """It and what else stands in every head, up to the request's name."""

    def make(self, now: float) -> None:
        """Make it."""
        wall = time.time()
        self.until = now + 1 - wall % 1
        self.text = formatdate(wall, usegmt=True)
        self.lines = f"date: {self.text}\r\nopenai-version: {_OPENAI_VERSION}\r\nx-request-id: "


def _status_line(status: int) -> str:
    """Of any status: upstreams answer with numbers that have no name."""
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n"


@functools.lru_cache(maxsize=1024)
def _served_by(target: str, attempts: int = 1) -> str:
    """The head's lines that say who answered, up to the overhead."""
    name = _UNSAFE.sub("?", target)  # a config's names are in any script
    return f"x-nenya-target: {name}\r\nx-nenya-attempts: {attempts}\r\nx-nenya-overhead-ms: "


def error_bytes(error: ApiError, dates: Dates) -> bytes:
    """A whole answer that closes the connection, for where there is no request to answer."""
    dates.make(time.monotonic())
    extra = "".join(f"{name}: {value}\r\n" for name, value in error.headers.items())
    return (
        f"{_status_line(error.status)}content-type: {JSON}\r\ncontent-length: {len(error.body)}\r\n"
        f"date: {dates.text}\r\n{extra}connection: close\r\n\r\n"
    ).encode("latin-1") + error.body


class Exchange(msgspec.Struct, eq=False):
    """One request and its answer."""

    head: Head
    payload: StreamReader
    connection: Connection
    given: bytes | None = None
    """The request's body, where there is nothing to be read."""
    length: int = 0
    """Of the body, 0 for one in chunks."""
    received_at: float = msgspec.field(default_factory=time.monotonic)
    request_id: str = ""
    key_id: str = ""
    """Whose key it came with, where its route asks for one."""
    body_read: bool = False
    """Nothing of the request is left to be read."""
    keep_alive: bool = False
    """Whether another request may follow on this connection; right once the answer's head is written."""
    last: bool = False
    """The connection must not be used again, whatever the answer."""
    started: bool = False
    """The answer's head is written."""
    streaming: bool = False
    """The answer is a stream that has begun and not ended."""
    stopped: bool = False
    """The server is going down and doesn't wait for this answer."""
    torn: bool = False
    """The answer is a stream that ended with an error, so the connection must end without the stream's end."""
    chunked: bool = False
    """The stream is framed in chunks."""
    extra: str = ""
    """Lines of the answer's head."""

    def __repr__(self) -> str:
        return f"<Exchange {self.request_id}>"

    # The request

    def body_in_hand(self) -> bytes | None:
        """The body where all of it is here, as it mostly is with its head; None where `body` must wait for it.

        Raises ApiError 413.
        """
        if self.given is not None:
            self.body_read = True
            return self.given
        payload = self.payload
        if payload is EMPTY_PAYLOAD or not payload._eof:  # noqa: SLF001 - its own way takes seven calls
            return None
        self.body_read = True
        pieces = payload._buffer  # noqa: SLF001
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.payload = EMPTY_PAYLOAD  # an answer may last for minutes, and its reader takes a KiB
        if len(body) > self.connection.gate.limits.max_body_bytes:
            self.last = True
            raise too_large(self.connection.gate.limits.max_body_bytes)
        return body

    async def body(self) -> bytes:
        """The body. Raises ApiError: 413 above the limit, 408 when it doesn't arrive in time, 400 when it is broken."""
        limits = self.connection.gate.limits
        length = self.length
        if length > limits.max_body_bytes:
            self.last = True
            raise too_large(limits.max_body_bytes)
        if (
            self.payload is EMPTY_PAYLOAD
        ):  # also where the length is the largest number that there is
            return b""
        self._say_continue()
        try:
            async with asyncio.timeout(limits.body_timeout_s):
                if length < LONG_BODY_BYTES:
                    return await self._collect(limits.max_body_bytes)
                return await self._receive(length)
        except TimeoutError as error:
            raise too_slow(limits.body_timeout_s) from error
        except BrokenBody as error:
            raise malformed() from error

    async def _receive(self, size: int) -> bytes:
        """A long body whose length is known."""
        line = self.connection.gate.long_bodies
        body = LongBody(self.connection, self.payload, size)
        try:
            while not body.whole:
                await line.turn()
                await body.more()
            await line.turn()  # it is decoded next
        except BaseException:
            body.abandon()
            raise
        self.body_read = True
        return body.take()

    async def _collect(self, limit_bytes: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        line = self.connection.gate.long_bodies
        while not self.payload.at_eof():
            if self.connection.broken:
                raise malformed()
            if size >= LONG_BODY_BYTES:
                await line.turn()  # taking a piece has the next one read from the network
            piece = await self.payload.readany()
            size += len(piece)
            if size > limit_bytes:
                raise too_large(limit_bytes)
            pieces.append(piece)
        if size >= LONG_BODY_BYTES:
            await line.turn()  # it is decoded next
        return b"".join(pieces)

    def _say_continue(self) -> None:
        expected = self.head.headers.get(hdrs.EXPECT, "")
        if expected.lower() == "100-continue" and self.head.version == HttpVersion11:
            self.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # The answer

    def served_by(self, target: str, attempts: int, overhead_s: float, lines: str = "") -> None:
        """Who gave the answer, for its head, and ``lines`` that stand there as they are."""
        who = _served_by(target) if attempts == 1 else _served_by(target, attempts)
        us = int(overhead_s * 1e6)
        ms = f"0.{_THREE[us]}" if 0 <= us < 1000 else f"{us / 1000:.3f}"
        self.extra = f"{who}{ms}\r\n{lines}"

    def note(self, headers: Mapping[str, str]) -> None:
        """Headers for the answer, besides those that every answer has; what can't stand in a head is left out."""
        for name, value in headers.items():
            if name in _OURS:
                continue
            if (value.isascii() and value.isprintable()) or _UNSAFE.search(value) is None:
                self.extra += f"{name}: {value}\r\n"

    def answer(self, status: int, body: bytes, content_type: str = JSON) -> None:
        """A whole answer in one write."""
        head = self._head(status, content_type, f"content-length: {len(body)}\r\n", bounded=True)
        data = head if self.head.method == hdrs.METH_HEAD else head + body
        if self.keep_alive:
            self.connection.hold(data)
        else:
            self.connection.write(data)

    def stream(self, blob: bytes) -> None:
        """A blob of a stream that has perhaps not begun."""
        if self.streaming:
            self.piece(blob)
        else:
            self.begin(blob)

    def begin(self, blob: bytes) -> None:
        """A stream's head and its first blob."""
        self.streaming = True
        self.chunked = chunked = self.head.version == HttpVersion11
        framing = "transfer-encoding: chunked\r\n" if chunked else ""
        head = self._head(200, EVENTS, f"cache-control: no-cache\r\n{framing}", bounded=chunked)
        data = self._framed(blob, head)
        if self.keep_alive and not self.streaming:
            self.connection.hold(data)  # it came whole
        else:
            self.connection.write(data)

    def piece(self, blob: bytes) -> None:
        """The stream's next blob; nothing where it is empty or the stream is over."""
        if blob and self.streaming:
            self.connection.write(self._framed(blob))

    def offer(self, blob: bytes) -> bool:
        """`piece` for who can't wait: whether another may come now. That nobody is there says the next `piece`."""
        connection = self.connection
        transport = connection.transport
        if transport is None or transport.is_closing() or not self.streaming:
            return False
        if self.chunked and not blob.endswith(DONE):
            transport.write(b"%x\r\n%b\r\n" % (len(blob), blob))
        else:
            transport.write(self._framed(blob))
        return not connection.writing_paused

    def end(self) -> None:
        """The stream is whole, if its [DONE] didn't say so already."""
        if self.streaming:
            self.streaming = False
            if self.chunked:
                self.connection.write(_LAST_CHUNK)

    def _framed(self, blob: bytes, head: bytes = b"") -> bytes:
        """A chunk; the end goes out with [DONE], which saves a system call."""
        last = blob.endswith(DONE)
        if last:
            self.streaming = False
        if not self.chunked:
            return head + blob
        return b"%b%x\r\n%b\r\n%b" % (head, len(blob), blob, _LAST_CHUNK if last else b"")

    def refuse(self, error: ApiError) -> None:
        """An error, whatever was written before it."""
        if self.streaming:
            self.piece(error_event(error))
            self.streaming = self.keep_alive = False
            self.torn = True
        elif not self.started:
            self.note(error.headers)
            self.answer(error.status, error.body)
        else:
            self.connection.force_close()

    def _head(self, status: int, content_type: str, framing: str, *, bounded: bool) -> bytes:
        """The answer's head; ``bounded``: its end can be told without closing the connection."""
        self.started = True
        connection = self.connection
        self.keep_alive = keep = (
            bounded
            and self.head.reusable
            and not (self.last or connection.closed or connection.gate.draining)
            and (self.body_read or self.payload.is_eof())
        )
        now, dates = time.monotonic(), connection.gate.dates
        if now >= dates.until:
            dates.make(now)
        spent_ms = int((now - self.received_at) * 1000)
        spent = _NUMBERS[spent_ms] if 0 <= spent_ms < 1000 else str(spent_ms)
        line = _OK_LINE if status == 200 else _status_line(status)
        return (
            f"{line}content-type: {content_type}\r\n{framing}{dates.lines}{self.request_id}\r\n"
            f"openai-processing-ms: {spent}\r\n{self.extra}{_LAST_LINE if keep else _CLOSE}"
        ).encode("latin-1")
