"""One request and its answer, as bytes.

Stands for aiohttp's Request and Response. The head of an answer is made of one string and written in one piece with
the body's first bytes.

An answer is whole (``answer``), or a stream (``begin``, ``piece``..., ``end``), or an error (``refuse``), which
is right at any time: after the head of a stream it becomes an error event, and the connection is cut without the
stream's end, so that no client takes it for a whole one.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, StreamReader, hdrs
from aiohttp.web_protocol import RequestPayloadError

from router.errors import ApiError
from router.server.screening import malformed, too_large, too_slow
from router.wire.completion import error_event
from router.wire.sse import DONE

if TYPE_CHECKING:
    from aiohttp.http import RawRequestMessage

    from router.server.connection import Connection

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
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
_LAST_CHUNK = b"0\r\n\r\n"
_OPENAI_VERSION = "2020-10-01"
"""The only version OpenAI's API ever named."""


class ClientGone(ConnectionError):  # noqa: N818 - names the event
    """Nobody is there to write to."""


class Dates:
    """The Date header's value, made once a second."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = 0
        self._text = ""

    def now(self) -> str:
        """As RFC 9110 wants it."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._text = formatdate(second, usegmt=True)
        return self._text


def _status_line(status: int) -> str:
    """Of any status: upstreams answer with numbers that have no name."""
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n"


def error_bytes(error: ApiError, dates: Dates) -> bytes:
    """A whole answer that closes the connection, for where there is no request to answer."""
    extra = "".join(f"{name}: {value}\r\n" for name, value in error.headers.items())
    return (
        f"{_status_line(error.status)}content-type: {JSON}\r\ncontent-length: {len(error.body)}\r\n"
        f"date: {dates.now()}\r\n{extra}connection: close\r\n\r\n"
    ).encode("latin-1") + error.body


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_chunked", "_extra", "connection", "keep_alive", "last", "message", "payload", "received_at", "request_id",
        "started", "stopped", "streaming",
    )  # fmt: skip

    def __init__(
        self, message: RawRequestMessage, payload: StreamReader, connection: Connection
    ) -> None:
        self.received_at = time.monotonic()
        self.message = message
        self.payload = payload
        self.connection = connection
        self.request_id = ""
        self.keep_alive = False
        """Whether another request may follow on this connection; right once the answer's head is written."""
        self.last = False
        """The connection must not be used again, whatever the answer."""
        self.started = False
        """The answer's head is written."""
        self.streaming = False
        """The answer is a stream that has begun and not ended."""
        self.stopped = False
        """The server is going down and doesn't wait for this answer."""
        self._chunked = False
        self._extra = ""

    # The request

    @property
    def path(self) -> str:
        """The target's path as it was sent, escapes and all."""
        return self.message.path.partition("?")[0]

    def name_request(self, made: str) -> None:
        """Take the client's id for this request if it is sane, else ``made``."""
        asked = self.message.headers.get("X-Request-Id")
        self.request_id = asked if asked and _REQUEST_ID.fullmatch(asked) else made

    async def body(self) -> bytes:
        """The body. Raises ApiError: 413 above the limit, 408 when it doesn't arrive in time, 400 when it is broken."""
        limits = self.connection.gate.limits
        payload = self.payload
        length = self.message.headers.get(hdrs.CONTENT_LENGTH)
        if length is not None and int(length) > limits.max_body_bytes:
            self.last = True
            raise too_large(limits.max_body_bytes)
        if payload.is_eof():
            body = payload.read_nowait()
            if len(body) > limits.max_body_bytes:
                raise too_large(limits.max_body_bytes)
            return body
        self._say_continue()
        try:
            async with asyncio.timeout(limits.body_timeout_s):
                return await self._collect(limits.max_body_bytes)
        except TimeoutError as error:
            raise too_slow(limits.body_timeout_s) from error
        except RequestPayloadError as error:
            raise malformed() from error

    async def _collect(self, limit_bytes: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while not self.payload.at_eof():
            if self.connection.broken:
                raise malformed()
            piece = await self.payload.readany()
            size += len(piece)
            if size > limit_bytes:
                raise too_large(limit_bytes)
            pieces.append(piece)
        return b"".join(pieces)

    def _say_continue(self) -> None:
        expected = self.message.headers.get(hdrs.EXPECT, "")
        if expected.lower() == "100-continue" and self.message.version == HttpVersion11:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # The answer

    def served_by(self, target: str, attempts: int, overhead_s: float) -> None:
        """Who gave the answer, for its head."""
        if not (target.isascii() and target.isprintable()):
            target = _UNSAFE.sub("?", target)  # a config's names are in any script
        self._extra = (
            f"x-nenya-target: {target}\r\nx-nenya-attempts: {attempts}\r\n"
            f"x-nenya-overhead-ms: {overhead_s * 1000:.3f}\r\n"
        )

    def note(self, headers: Mapping[str, str], lines: str = "") -> None:
        """Headers for the answer, besides those that every answer has; what can't stand in a head is left out.

        ``lines`` stand there as they are.
        """
        for name, value in headers.items():
            plain = value.isascii() and value.isprintable()
            if name not in _OURS and (plain or _UNSAFE.search(value) is None):
                self._extra += f"{name}: {value}\r\n"
        self._extra += lines

    def answer(self, status: int, body: bytes, content_type: str = JSON) -> None:
        """A whole answer in one write."""
        self.keep_alive = self._may_stay()
        head = self._head(status, content_type, f"content-length: {len(body)}\r\n")
        self._write(head if self.message.method == hdrs.METH_HEAD else head + body)

    def stream(self, blob: bytes) -> None:
        """A blob of a stream that has perhaps not begun."""
        if self.streaming:
            self.piece(blob)
        else:
            self.begin(blob)

    def begin(self, blob: bytes) -> None:
        """A stream's head and its first blob."""
        self.streaming = True
        self._chunked = self.message.version == HttpVersion11
        self.keep_alive = self._chunked and self._may_stay()
        framing = "transfer-encoding: chunked\r\n" if self._chunked else ""
        head = self._head(200, EVENTS, f"cache-control: no-cache\r\n{framing}")
        self._write(head + self._framed(blob))

    def piece(self, blob: bytes) -> None:
        """The stream's next blob; nothing where it is empty or the stream is over."""
        if blob and self.streaming:
            self._write(self._framed(blob))

    def offer(self, blob: bytes) -> bool:
        """`piece` for who can't wait: whether another may come now. That nobody is there says the next `piece`."""
        try:
            self.piece(blob)
        except ClientGone:
            return False
        return not self.connection.writing_paused

    def end(self) -> None:
        """The stream is whole, if its [DONE] didn't say so already."""
        if self.streaming:
            self.streaming = False
            if self._chunked:
                self._write(_LAST_CHUNK)

    def _framed(self, blob: bytes) -> bytes:
        """A chunk; the end goes out with [DONE], which saves a system call."""
        last = blob.endswith(DONE)
        if last:
            self.streaming = False
        if not self._chunked:
            return blob
        return b"%x\r\n%b\r\n%b" % (len(blob), blob, _LAST_CHUNK if last else b"")

    def refuse(self, error: ApiError) -> None:
        """An error, whatever was written before it."""
        if self.streaming:
            self.piece(error_event(error))
            self.streaming = False
            self.connection.force_close()
        elif not self.started:
            self.note(error.headers)
            self.answer(error.status, error.body)
        else:
            self.connection.force_close()

    def _may_stay(self) -> bool:
        message = self.message
        return not (
            message.should_close
            or message.upgrade
            or message.version != HttpVersion11
            or self.last
            or self.connection.closing
            or not self.payload.is_eof()
        )

    def _head(self, status: int, content_type: str, framing: str) -> bytes:
        self.started = True
        spent_ms = int((time.monotonic() - self.received_at) * 1000)
        close = "" if self.keep_alive else "connection: close\r\n"
        date = self.connection.gate.dates.now()
        return (
            f"{_status_line(status)}content-type: {content_type}\r\n{framing}date: {date}\r\n"
            f"x-request-id: {self.request_id}\r\nopenai-processing-ms: {spent_ms}\r\n"
            f"openai-version: {_OPENAI_VERSION}\r\n{self._extra}{close}\r\n"
        ).encode("latin-1")

    def _write(self, data: bytes) -> None:
        transport = self.connection.transport
        if transport is None or transport.is_closing():
            raise ClientGone
        transport.write(data)
