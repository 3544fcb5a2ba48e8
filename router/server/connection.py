"""One TCP connection: its clocks, its limits, and aiohttp's own errors made ours.

aiohttp's RequestHandler parses, queues pipelined requests and closes idle connections. What it leaves open and is
closed here: a head may drip for ever, a malformed request comes back with its raw header in the body and the log,
a broken body leaves its reader waiting, a client that doesn't read holds an answer for ever, and there may be any
number of connections.

The clocks cost nothing on the straight path: a timer is set when a head comes in parts or a write doesn't go out.
Requests are answered in the connection's own task; aiohttp's way, a task and a writer for each, costs two more turns
of the loop, and a turn is a system call.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
from aiohttp import StreamReader, web
from aiohttp.http import HttpProcessingError, HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import ERROR, RequestPayloadError

from router.ending import Ending
from router.errors import overloaded
from router.server.exchange import LONG_BODY_BYTES, ClientGone, Dates, Exchange, error_bytes
from router.server.one_by_one import OneByOne
from router.server.screening import malformed
from router.wire.sse import KEEP_ALIVE

MAX_LINE_BYTES = 8192
"""Of a request line and of a header; what nginx and Apache take. Keys and trace headers stay far below."""
MAX_HEADERS = 128
"""Browsers and SDKs send about 20."""
READ_STALL_S = 60.0
"""Who takes less of a waiting answer than its buffer holds (64 KiB) in this time is gone; nginx's send_timeout."""
LINGER_S = 5.0
"""How long the rest of a refused body is read and dropped, so that the client gets to read why; nginx's default."""

MAX_HELD_BYTES = 16 * 1024
"""An answer up to here is held to the end of the loop's turn: with the longest chat answers, and without images."""

MALFORMED_LINGER_S = 1.0
"""The same where nothing can be read any more, and the client is more likely an attacker."""

KEEP_ALIVE_S = 15.0
"""A quarter of the 60 s after which nginx and most load balancers give a silent upstream up; the interval that the
WHATWG's specification of event streams advises."""

NONE_CAME = [(ERROR, EMPTY_PAYLOAD)]
"""What stands in the queue of requests for something that is no HTTP."""
TORN_S = 0.1
"""Between a stream's error event and the cut: browsers drop what a page hasn't read when the connection breaks, so
the event would be lost. At once Chromium lost 26 of 40, after 0.1 s none of 40 (`tests/e2e/test_page.py`)."""

_log = logging.getLogger(__name__)

Serve = Callable[[Exchange], Awaitable[None]]


class Limits(msgspec.Struct, frozen=True):
    """What one listener's clients may take, of time and of memory."""

    max_connections: int
    max_body_bytes: int
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    keep_alive_s: float = 75.0
    read_stall_s: float = READ_STALL_S


class Gate(web.Server):
    """The connections of one listener."""

    def __init__(self, serve: Serve, limits: Limits) -> None:
        """``serve`` answers an exchange and raises only CancelledError and ClientGone."""
        super().__init__(_unused, handler_cancellation=True)
        self.serve = serve
        self.limits = limits
        self.draining = False
        self.dates = Dates()
        self.ending = Ending()
        self.long_bodies = OneByOne()

    def __call__(self) -> Connection:
        """A protocol for a connection just accepted."""
        return Connection(self)

    @property
    def full(self) -> bool:
        """No connection more is taken."""
        return len(self._connections) >= self.limits.max_connections

    @property
    def busy(self) -> bool:
        """An answer is under way or not yet taken."""
        return any(one.busy for one in self._all())

    def drain(self) -> None:
        """Close idle connections now, and the others after their answer, which says so."""
        self.draining = True
        for one in self._all():
            if not one.busy:
                one.force_close()

    def cut(self) -> None:
        """Cancel what still runs; each client gets an explicit error."""
        for one in self._all():
            one.cut()

    def abort(self) -> None:
        """Drop what is left, whatever it is."""
        for transport in list(self._connections.values()):
            transport.abort()

    def _all(self) -> list[Connection]:
        return cast("list[Connection]", self.connections)


async def _unused(_request: web.BaseRequest) -> web.StreamResponse:
    """What aiohttp would call for a request; connections here call ``serve``."""
    raise NotImplementedError


class Connection(web.RequestHandler):
    """One connection."""

    __slots__ = (
        "_comment_timer", "_head_timer", "_stall_timer", "broken", "comments_at", "exchange", "gate", "held",
    )  # fmt: skip

    def __init__(self, gate: Gate) -> None:
        super().__init__(
            gate,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=gate.limits.keep_alive_s,
            logger=_log,
            access_log=cast("Any", None),
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            lingering_time=LINGER_S,
            auto_decompress=False,
        )
        self.gate = gate
        self.exchange: Exchange | None = None
        """The request under way."""
        self.broken = False
        """What came is no HTTP; nothing after it can be read."""
        self.held = b""
        """An answer, or several of pipelined requests, that is yet to be written."""
        self.comments_at = 0.0
        """When a comment is due on a stream that is waited for (the loop's time); 0 while none is."""
        self._comment_timer: asyncio.TimerHandle | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        """The client's, without its port."""
        peer = self.peername
        return str(peer[0]) if peer else ""

    @property
    def closing(self) -> bool:
        """No request will follow the one under way."""
        return self._close or self._force_close or self.gate.draining

    # What the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it with a 503 where there are too many."""
        if self.gate.full or self.gate.draining:
            self._force_close = True
            error = overloaded("The server has too many connections.", "too_many_connections", 1.0)
            cast("asyncio.Transport", transport).write(error_bytes(error, self.gate.dates))
            cast("asyncio.Transport", transport).close()
            return
        super().connection_made(transport)
        self._head_timer = self._loop.call_later(self.gate.limits.header_timeout_s, self._head_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the clocks; aiohttp cancels the request under way."""
        self._stop_head_timer()
        self._stop_stall_timer()
        if self._comment_timer is not None:
            self._comment_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; watch heads that come in parts, and tell a body's reader that the rest is broken."""
        if self._force_close or self._close or self._upgraded or self._parser is None:
            return
        try:
            messages, self._upgraded, _ = self._parser.feed_data(data)
        except HttpProcessingError:
            messages = NONE_CAME
        waiter = self._waiter
        if not messages:
            if self._head_timer is None and waiter is not None:
                self._head_timer = self._loop.call_later(
                    self.gate.limits.header_timeout_s, self._head_late
                )
            return
        if self._head_timer is not None:
            self._stop_head_timer()
        if messages is NONE_CAME:
            self._break()
        self._messages.extend(messages)
        crowded = len(self._messages) >= self._max_msg_queue_size
        # What follows much of a body is more of it, and may go another way (`long_body`).
        if (crowded or len(data) >= LONG_BODY_BYTES) and not self._buffer_paused:
            self._pause_reading_for_buffer()
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's signature
        """Go on parsing, unless nothing was held back: aiohttp asks after every body that was read.

        The parser may stop by itself in a body of many chunks, so only a body that is whole is sure.
        """
        exchange = self.exchange
        unsure = resume_parser and (exchange is None or not exchange.payload.is_eof())
        if self._reading_paused or unsure:
            super().resume_reading(resume_parser)

    def pause_writing(self) -> None:
        """The client reads slower than the answer comes; from now on it is timed."""
        super().pause_writing()
        self._stall_timer = self._loop.call_later(self.gate.limits.read_stall_s, self._stalled)

    def resume_writing(self) -> None:
        """It took its buffer."""
        self._stop_stall_timer()
        super().resume_writing()

    # The requests, one after the other

    async def start(self) -> None:
        """Answer requests until one of them is the last."""
        loop, serve = self._loop, self.gate.serve
        messages = cast("deque[tuple[RawRequestMessage, StreamReader]]", self._messages)
        try:
            while True:
                if not messages:
                    self._waiter = loop.create_future()
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
                message, payload = messages.popleft()
                if self._parser is not None:
                    self._parser.message_consumed()
                if self._buffer_paused and len(messages) <= self._msg_queue_resume_size:
                    self._resume_reading_if_drained()
                if message is ERROR:
                    await self._refuse_malformed()
                    break
                self.exchange = exchange = Exchange(message, payload, self)
                try:
                    await serve(exchange)
                finally:
                    self.exchange = None
                if self._paused or exchange.torn or not exchange.body_read:
                    await self._wind_up(exchange)
                if not exchange.keep_alive or self._close or self._force_close:
                    break
                self._expect_next()
        except ClientGone:
            pass
        finally:
            self._task_handler = None
            self.force_close()

    async def _wind_up(self, exchange: Exchange) -> None:
        """Let the client take its answer, and read what is left of its request."""
        if self.writing_paused:
            await self.drain()
        if exchange.torn:
            await asyncio.sleep(TORN_S)
        if not exchange.payload.is_eof():
            await self._linger(exchange.payload)

    def _expect_next(self) -> None:
        """Set the clock of an idle connection; an old timer that comes early sets itself again."""
        due = self._loop.time() + self._keepalive_timeout
        self._next_keepalive_close_time = due
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(due, self._process_keepalive)

    async def _refuse_malformed(self) -> None:
        """A constant answer, and no line in the log: what was sent may hold a key."""
        self.close()  # nothing is parsed from now on
        if self.transport is not None:
            self.write(error_bytes(malformed(), self.gate.dates))
            self.transport.write_eof()
            await asyncio.sleep(MALFORMED_LINGER_S)  # less when the client closes: that cancels

    async def _linger(self, payload: StreamReader) -> None:
        """Read and drop the rest of a body that was refused: closing on it would destroy the answer on its way."""
        try:
            async with asyncio.timeout(LINGER_S):
                while not payload.at_eof() and not self.broken:
                    await payload.readany()
        except (TimeoutError, RequestPayloadError):
            pass

    # What the exchange asks

    def hold(self, answer: bytes) -> None:
        """Write ``answer`` at the end of the loop's turn, behind those of other connections; a long one now. Raises
        ClientGone.

        Each write to a client that sleeps wakes it, which costs more than the write; one of many in a row finds the
        machine that it wakes awake.
        """
        if len(answer) > MAX_HELD_BYTES:
            self.write(answer)
            return
        if self.transport is None or self.transport.is_closing():
            raise ClientGone
        if not self.held:
            self.gate.ending.write(self.release)
        self.held += answer

    def write(self, data: bytes) -> None:
        """Write now, behind what is held. Raises ClientGone."""
        if self.held:
            self.release()
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ClientGone
        transport.write(data)

    def renew_parser(self) -> None:
        """Have the next request read by a parser that has seen nothing; after a body that went past the old one."""
        if self._parser is None:
            return  # the connection is lost
        self._parser = HttpRequestParser(
            self,
            self._loop,
            self._read_bufsize,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            payload_exception=RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=self._max_msg_queue_size,
        )

    def release(self) -> None:
        """Write what is held."""
        held, self.held = self.held, b""
        if self.transport is not None and held:
            self.transport.write(held)

    async def drain(self) -> None:
        """Wait until the client has taken its buffer. Raises ClientGone."""
        if self.writing_paused:
            try:
                await self._drain_helper()
            except ConnectionError as error:
                raise ClientGone from error

    def keep_alive_from_now(self) -> None:
        """Comments on the stream under way, one each KEEP_ALIVE_S, until `comments_at` is 0 again. A timer that is set
        for an earlier stream serves this one, too.
        """
        self.comments_at = self._loop.time() + KEEP_ALIVE_S
        if self._comment_timer is None:
            self._comment_timer = self._loop.call_at(self.comments_at, self._comment)

    def force_close(self) -> None:
        """Close after what is written; a client that doesn't take it is cut off."""
        if self.held:
            self.release()
        transport = self.transport
        super().force_close()
        if transport is not None and transport.get_write_buffer_size():
            self._loop.call_later(self.gate.limits.read_stall_s, transport.abort)

    # What the gate asks

    @property
    def busy(self) -> bool:
        """A request is under way, or its answer not yet taken."""
        return not self._idle

    def cut(self) -> None:
        """Cancel the request under way, telling its client why."""
        exchange, task = self.exchange, self._task_handler
        if exchange is not None and task is not None:
            exchange.stopped = True
            task.cancel()

    @property
    def _idle(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _break(self) -> None:
        self.broken = True
        exchange = self.exchange
        if exchange is not None and not exchange.payload.is_eof():
            exchange.payload.set_exception(RequestPayloadError("the body is broken"))

    def _comment(self) -> None:
        self._comment_timer = None
        if not self.comments_at or self.exchange is None:
            return
        if self._loop.time() >= self.comments_at:
            try:
                self.exchange.stream(KEEP_ALIVE)
            except ClientGone:  # Whoever waits for the answer hears it from the connection.
                return
            self.comments_at += KEEP_ALIVE_S
        self._comment_timer = self._loop.call_at(self.comments_at, self._comment)

    def _head_late(self) -> None:
        self._head_timer = None
        self.force_close()

    def _stalled(self) -> None:
        self._stall_timer = None
        if self.transport is not None:
            self.transport.abort()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
