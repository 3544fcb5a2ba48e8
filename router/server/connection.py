"""One TCP connection: its requests one after the other, its clocks and its limits.

aiohttp's parser reads the requests and its StreamReader their bodies, all but those whose head came before (`heads`)
and whose body is short: there is nothing to be parsed in them. What they leave open and is closed here: a head may
drip for ever, a broken body leaves its reader waiting, a client that doesn't read holds an answer for ever, a pipeline
may be endless, and there may be any number of connections.

A connection that has asked nothing yet is its transport and this object: the parser comes with the first bytes, the
task with the first request, and the clocks are the listener's (`Timeouts`). Requests are answered in the connection's
one task; aiohttp's way, a task and a writer for each, costs two more turns of the loop, and a turn is a system call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import msgspec
from aiohttp import StreamReader
from aiohttp.http import HttpProcessingError, HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD

from router.ending import Ending
from router.errors import overloaded
from router.server.exchange import (
    LONG_BODY_BYTES,
    BrokenBody,
    ClientGone,
    Dates,
    Exchange,
    error_bytes,
)
from router.server.heads import EMPTY_LINE, Head, head_of
from router.server.one_by_one import OneByOne
from router.server.screening import malformed
from router.server.timeouts import Timeouts
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

MAX_QUEUED = 32
"""Pipelined requests that are parsed before their turn; above it nothing is read until half of them are answered."""
BODY_BUFFER_BYTES = 256 * 1024
"""Twice as much of a body may wait to be read before the network is told to stop."""

MAX_UNLIKE = 4
"""Heads in a row that were not the one before; who sent so many is taken to send another each time."""
UNKNOWN = -1
"""Where the parser stands."""

Queued = tuple[Head | None, int, StreamReader, bytes | None]
"""A request's head, its body's length and reader, and the body where that needs no reading; no head for what is no
HTTP.
"""
TORN_S = 0.1
"""Between a stream's error event and the cut: browsers drop what a page hasn't read when the connection breaks, so
the event would be lost. At once Chromium lost 26 of 40, after 0.1 s none of 40 (`tests/e2e/test_page.py`)."""

Serve = Callable[[Exchange], Awaitable[None]]


class Limits(msgspec.Struct, frozen=True):
    """What one listener's clients may take, of time and of memory."""

    max_connections: int
    max_body_bytes: int
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    keep_alive_s: float = 75.0
    read_stall_s: float = READ_STALL_S


class Gate:
    """The connections of one listener."""

    def __init__(self, serve: Serve, limits: Limits) -> None:
        """``serve`` answers an exchange and raises only CancelledError and ClientGone."""
        self.loop = asyncio.get_running_loop()
        self.serve = serve
        self.limits = limits
        self.draining = False
        self.dates = Dates()
        self.ending = Ending()
        self.long_bodies = OneByOne()
        self.short_bytes = min(LONG_BODY_BYTES, limits.max_body_bytes)
        """A request up to here has a body that is neither long nor too long."""
        self.connections: set[Connection] = set()
        """Those whose socket is open or whose task runs."""
        self.heads = Timeouts(limits.header_timeout_s, Connection.force_close)
        """Who may send a head, or the rest of it."""
        self.idle = Timeouts(limits.keep_alive_s, Connection.idle_late)
        """Who may send another request."""
        self.waited_for = Timeouts(KEEP_ALIVE_S, Connection.comment)
        """Whose stream lets itself be waited for."""

    def __call__(self) -> Connection:
        """A protocol for a connection just accepted."""
        return Connection(self)

    @property
    def full(self) -> bool:
        """No connection more is taken."""
        return len(self.connections) >= self.limits.max_connections

    @property
    def busy(self) -> bool:
        """An answer is under way or not yet taken."""
        return any(one.busy for one in self.connections)

    def drain(self) -> None:
        """Close idle connections now, and the others after their answer, which says so."""
        self.draining = True
        for one in tuple(self.connections):
            if not one.busy:
                one.force_close()

    def cut(self) -> None:
        """Cancel what still runs; each client gets an explicit error."""
        for one in tuple(self.connections):
            one.cut()

    def abort(self) -> None:
        """Drop what is left, whatever it is."""
        for one in tuple(self.connections):
            if one.transport is not None:
                one.transport.abort()


class Connection(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_begun", "_buffer_paused", "_drained", "_known", "_left", "_owed", "_owing", "_parser", "_queue",
        "_reading_paused", "_stall_timer", "_task", "_unlike", "_waiter", "broken", "closed", "deaf", "exchange",
        "gate", "held", "transport", "writing_paused",
    )  # fmt: skip

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.transport: asyncio.Transport | None = None
        """None before it is made and after it is lost."""
        self.exchange: Exchange | None = None
        """The request under way."""
        self.closed = False
        """No request is answered any more."""
        self.deaf = False
        """Nothing is read any more."""
        self.broken = False
        """What came is no HTTP; nothing after it can be read."""
        self.held = b""
        """An answer, or several of pipelined requests, that is yet to be written."""
        self.writing_paused = False
        """The client reads slower than its answer comes."""
        self._parser: HttpRequestParser | None = None
        self._queue: list[Queued] = []
        """Requests that wait for their turn."""
        self._known: Head | None = None
        """The head that is known when it comes again."""
        self._left = 0
        """Bytes until the parser stands between two requests, or UNKNOWN. There nothing of it need be parsed."""
        self._unlike = 0
        """So many heads in a row were not the known one."""
        self._owing: StreamReader | None = None
        self._owed = 0
        """Bytes of a known head's body that are yet to come, and to whom; the parser hears nothing of them."""
        self._reading_paused = self._buffer_paused = False
        """By a body that isn't read, and by requests that aren't answered."""
        self._task: asyncio.Task[None] | None = None
        self._begun = False
        """The task has begun to run."""
        self._waiter: asyncio.Future[None] | None = None
        """What the task waits for while it is idle."""
        self._drained: asyncio.Future[None] | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        """The client's, without its port."""
        peer = self.transport.get_extra_info("peername") if self.transport is not None else None
        return str(peer[0]) if peer else ""

    @property
    def connected(self) -> bool:
        """As StreamReader asks."""
        return self.transport is not None

    @property
    def closing(self) -> bool:
        """No request will follow the one under way."""
        return self.closed or self.gate.draining

    # What the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it with a 503 where there are too many. The event loops have set TCP_NODELAY
        on it.
        """
        gate = self.gate
        self.transport = wire = cast("asyncio.Transport", transport)
        if gate.full or gate.draining:
            self.deaf = self.closed = True
            error = overloaded("The server has too many connections.", "too_many_connections", 1.0)
            wire.write(error_bytes(error, gate.dates))
            wire.close()
            return
        gate.connections.add(self)
        gate.heads.begin(self)

    def connection_lost(self, _exc: BaseException | None) -> None:
        """Stop the clocks, and the request under way."""
        gate, task, waiter = self.gate, self._task, self._waiter
        self.transport = self._parser = self._owing = None  # the others know this object
        self._owed = 0
        self.deaf = self.closed = True
        gate.heads.end(self)
        self._stop_stall_timer()
        if task is None:
            gate.connections.discard(self)
        elif waiter is not None:
            _wake(waiter)
        elif self._begun:
            task.cancel()  # else it sees for itself

    def data_received(self, data: bytes) -> None:
        """Take the request; parse what isn't known."""
        if self.deaf:
            return
        if self._owed:
            data = self._feed(data)
            if not data:
                return
        known, queue = self._known, self._queue
        if known is None or self._left or queue or len(data) >= self.gate.short_bytes:
            self._parse(data)
            return
        body = known.body_in(data)
        if body is None:
            self._begin(known, data)
            return
        self._unlike = 0
        queue.append((known, len(body), EMPTY_PAYLOAD, body))
        self._go()

    def _begin(self, known: Head, data: bytes) -> None:
        """Take the request whose body is yet to come, if its head is known and it is short; else parse it."""
        length, body = known.begin_in(data)
        if not len(body) < length < self.gate.short_bytes:
            self._parse(data)
            return
        self._unlike = 0
        reader = StreamReader(cast("Any", self), BODY_BUFFER_BYTES, loop=self.gate.loop)
        self._owing, self._owed = reader, length
        self._feed(body)
        self._queue.append((known, length, reader, None))
        self._go()

    def _feed(self, data: bytes) -> bytes:
        """Give the body of a known head what has come of it; what comes behind it."""
        reader, owed = self._owing, self._owed
        assert reader is not None, "something is owed to it"
        if data:
            body = data[:owed]
            self._owed = owed - len(body)
            reader.feed_data(body)
            if not self._owed:
                self._owing = None
                reader.feed_eof()
        return data[owed:]

    def _parse(self, data: bytes) -> None:
        """Queue what the parser makes of it, watch heads that come in parts, and hold back who sends too much."""
        if self._parser is None:
            self._parser = _parser(self)
        messages: Sequence[tuple[RawRequestMessage, StreamReader]]
        try:
            messages, self.deaf, _ = self._parser.feed_data(data)
        except HttpProcessingError:
            self._break()
            return
        if not messages:
            left = self._left
            self._left = left - len(data) if left >= len(data) else UNKNOWN
            self._watch_head()
            return
        queue, alone = self._queue, len(messages) == 1 and not self._left
        self._left = UNKNOWN
        for message, payload in messages:
            head = head_of(message)
            queue.append((head, head.length, payload, None))
            if alone and head.reusable and not head.chunked:
                self._learn(head, data)
        self.gate.heads.end(self)
        # What follows much of a body is more of it, and may go another way (`long_body`).
        crowded = len(queue) >= MAX_QUEUED or len(data) >= LONG_BODY_BYTES
        if crowded and not self._buffer_paused:
            self._buffer_paused = True
            self._pause_transport()
        self._go()

    def _learn(self, head: Head, data: bytes) -> None:
        """Know the head again that the parser, which stood between two requests, read alone in ``data``; and see where
        the parser stands now.
        """
        end = data.find(EMPTY_LINE)
        left = end + len(EMPTY_LINE) + head.length - len(data)
        if end < 0 or left < 0 or data[0] in b"\r\n":
            return  # there was more, or an empty line before it
        self._left = left
        if head.length:
            self._unlike += 1
            self._known = head if self._unlike <= MAX_UNLIKE and head.learn(data) else None

    def _go(self) -> None:
        """Have the task see what is queued."""
        if self._task is None:
            self._task = self.gate.loop.create_task(self._answer())
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _watch_head(self) -> None:
        """Something came, and it is no whole head: the clock runs from the first such bytes."""
        idle = self._task is None or self._waiter is not None
        if idle and self not in self.gate.heads.due:
            self.gate.heads.begin(self)

    def pause_reading(self) -> None:
        """A body's reader has more than it wants."""
        assert self._parser is not None
        self._reading_paused = True
        self._parser.pause_reading()
        self._pause_transport()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - as StreamReader asks
        """Go on parsing, unless nothing was held back: it is asked after every body that was read.

        The parser may stop by itself in a body of many chunks, so only a body that is whole is sure.
        """
        exchange = self.exchange
        sure = not resume_parser or (exchange is not None and exchange.payload.is_eof())
        if sure and not self._reading_paused:
            return
        self._reading_paused = False
        if resume_parser:
            self.data_received(b"")
        self._resume_transport()

    def pause_writing(self) -> None:
        """The client reads slower than the answer comes; from now on it is timed."""
        self.writing_paused = True
        self._stall_timer = self.gate.loop.call_later(self.gate.limits.read_stall_s, self._stalled)

    def resume_writing(self) -> None:
        """It took its buffer."""
        self.writing_paused = False
        self._stop_stall_timer()
        if self._drained is not None:
            _wake(self._drained)

    # The requests, one after the other

    async def _answer(self) -> None:
        """Answer requests until one of them is the last."""
        gate, queue = self.gate, self._queue
        self._begun = True
        try:
            while not self.closed:
                if not queue:
                    gate.idle.begin(self)
                    self._waiter = gate.loop.create_future()
                    await self._waiter
                    self._waiter = None
                    continue
                head, length, payload, body = queue.pop(0)
                if body is None and self._parser is not None:
                    self._parser.message_consumed()
                if self._buffer_paused and len(queue) <= MAX_QUEUED // 2:
                    self._go_on_reading()
                if head is None:
                    await self._refuse_malformed()
                    break
                self.exchange = exchange = Exchange(head, payload, self, body, length)
                try:
                    await gate.serve(exchange)
                finally:
                    self.exchange = None
                if self.writing_paused or exchange.torn or not exchange.body_read:
                    await self._wind_up(exchange)
                if not exchange.keep_alive:
                    break
        except ClientGone:
            pass
        finally:
            self._task = self._waiter = None
            gate.idle.end(self)
            if self.transport is None:
                gate.connections.discard(self)
            else:
                self.force_close()

    async def _wind_up(self, exchange: Exchange) -> None:
        """Let the client take its answer, and read what is left of its request."""
        if self.writing_paused:
            await self.drain()
        if exchange.torn:
            await asyncio.sleep(TORN_S)
        if not exchange.payload.is_eof():
            await self._linger(exchange.payload)

    async def _refuse_malformed(self) -> None:
        """A constant answer, and no line in the log: what was sent may hold a key."""
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
        except (TimeoutError, BrokenBody):
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
        self._parser = None
        self._left = 0

    def release(self) -> None:
        """Write what is held."""
        held, self.held = self.held, b""
        if self.transport is not None and held:
            self.transport.write(held)

    async def drain(self) -> None:
        """Wait until the client has taken its buffer. Raises ClientGone."""
        if self.transport is None:
            raise ClientGone
        if self.writing_paused:
            self._drained = self.gate.loop.create_future()
            await self._drained  # where the client leaves, that cancels

    def comment(self) -> None:
        """Tell the client of a stream that waits that it is still waited for, now and again."""
        if self.exchange is None:
            return
        try:
            self.exchange.stream(KEEP_ALIVE)
        except ClientGone:  # Whoever waits for the answer hears it from the connection.
            return
        self.gate.waited_for.begin(self)

    def force_close(self) -> None:
        """Close after what is written; a client that doesn't take it is cut off."""
        if self.held:
            self.release()
        self.deaf = self.closed = True
        if self._waiter is not None:
            _wake(self._waiter)
        transport = self.transport
        if transport is not None and not transport.is_closing():
            transport.close()
            if transport.get_write_buffer_size():
                self.gate.loop.call_later(self.gate.limits.read_stall_s, transport.abort)

    # What the gate asks

    @property
    def busy(self) -> bool:
        """A request is under way, or its answer not yet taken."""
        return self._task is not None and (self._waiter is None or self._waiter.done())

    def cut(self) -> None:
        """Cancel the request under way, telling its client why."""
        exchange, task = self.exchange, self._task
        if exchange is not None and task is not None:
            exchange.stopped = True
            task.cancel()

    def idle_late(self) -> None:
        """No request has come for long, or one that is under way came in time."""
        if not self.busy:
            self.force_close()

    def _break(self) -> None:
        """What came is no HTTP: answer what came before it, say so and close."""
        self.deaf = self.broken = True
        self._queue.append((None, 0, EMPTY_PAYLOAD, None))
        self.gate.heads.end(self)
        exchange = self.exchange
        if exchange is not None and not exchange.payload.is_eof():
            exchange.payload.set_exception(BrokenBody("the body is broken"))
        self._go()

    def _go_on_reading(self) -> None:
        """Parse what was read behind a long queue, and read on unless it is as long again."""
        self.data_received(b"")
        if len(self._queue) < MAX_QUEUED:
            self._buffer_paused = False
            self._resume_transport()

    def _pause_transport(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def _resume_transport(self) -> None:
        paused = self._reading_paused or self._buffer_paused
        if not paused and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def _stalled(self) -> None:
        self._stall_timer = None
        if self.transport is not None:
            self.transport.abort()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


def _parser(connection: Connection) -> HttpRequestParser:
    return HttpRequestParser(
        cast("Any", connection),
        connection.gate.loop,
        BODY_BUFFER_BYTES,
        max_line_size=MAX_LINE_BYTES,
        max_field_size=MAX_LINE_BYTES,
        max_headers=MAX_HEADERS,
        payload_exception=BrokenBody,
        auto_decompress=False,
        max_msg_queue_size=MAX_QUEUED,
    )


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
