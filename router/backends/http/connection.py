"""One HTTP/1.1 connection to a provider: one request at a time, its response into a mailbox.

A general client would spend more time on a request than the rest of the router does. Here the parser (llhttp, by
httptools) appends body pieces to a list and counts messages without entering Python, a segment of the network wakes the
reader once however many chunks are in it, and nothing waits in here: whoever awaits, awaits the mailbox. A response
that comes in one piece isn't parsed at all where its head is as plain as most are (`head.Heads`).

A response that leaves any doubt about where it ends (bytes behind it, bytes before the request) costs the
connection, so that they aren't taken for the answer to the next request. Bytes that a server sends unasked after the
next request went out can't be told from its answer; HTTP/1.1 has no name for what belongs to what.

Source: RFC 9112, sections 4 (responses), 6 (bodies), 7 (chunks), 9 (connections); RFC 9110, section 15.2 (1xx).
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from router.backends.http.head import CHUNKED, MAX_HEAD_BYTES, Head, Heads, Refused, read_head
from router.backends.mailbox import Alarm, Mailbox
from router.ending import Ending
from router.errors import Fault, FaultKind, IllegalMove

WRITE_BYTES = 64 * 1024
"""Up to here head and body are one write."""

PIECE_BYTES = 4 * 1024 * 1024
"""More goes out in pieces of this size as the network takes them; Linux' buffer of a socket grows to as much. In pieces
of 256 KiB a prompt of 1 MiB costs 0.1 ms more: the provider's machine is woken for each."""

ENCRYPTED_PIECE_BYTES = 256 * 1024
"""The same under TLS, where the whole piece is encrypted in one go, in below 0.2 ms, and kept by the transport."""

HIGH_WATER_BYTES = 256 * 1024
"""What may wait for a slow reader before the network is told to stop: about 1,300 stream chunks, or one read."""

LINGER_S = 1.0
"""How long a stream's last bytes may take after its [DONE]. They come in the same segment or one round trip later;
waiting a second for them is cheaper than a new TLS connection, waiting longer isn't worth the descriptor."""

STALE_S = 1.0
"""A server that had closed a kept connection says so within a round trip of the request's arrival. One that closes
later than this had time to work on the request."""


class State(enum.IntEnum):
    """What a connection does; the table below says what may follow."""

    OPENING = 0
    IDLE = 1
    AWAITING_HEAD = 2
    READING_BODY = 3
    HOLDING = 4
    """The response is whole, its reader behind: nothing is read from the network until the reader took it."""
    LINGERING = 5
    """The reader has all it wants; the response's last bytes are still to come."""
    CLOSED = 6


_MOVES: tuple[tuple[State, ...], ...] = (
    (State.IDLE, State.CLOSED),  # OPENING
    (State.AWAITING_HEAD, State.CLOSED),  # IDLE
    (State.READING_BODY, State.CLOSED),  # AWAITING_HEAD
    (State.IDLE, State.HOLDING, State.LINGERING, State.CLOSED),  # READING_BODY
    (State.IDLE, State.CLOSED),  # HOLDING
    (State.IDLE, State.CLOSED),  # LINGERING
    (),  # CLOSED
)
"""By a state's number: a dict would ask the enum for its hash, in Python."""

_ONE = (None,)
_NOTHING: Mapping[str, str] = MappingProxyType({})

# Reading a member through its class costs as much as a header does in Python 3.11.
_IDLE, _AWAITING_HEAD, _READING_BODY = State.IDLE, State.AWAITING_HEAD, State.READING_BODY
_HOLDING, _LINGERING, _CLOSED = State.HOLDING, State.LINGERING, State.CLOSED


class Owner(Protocol):
    """Whose connection it is: hears what becomes of it."""

    ending: Ending
    """Sends what its connections have to send."""
    heads: Heads
    """What is known of the heads that its connections get."""

    def released(self, connection: Connection) -> None:
        """It answered and may serve again."""

    def closed(self, connection: Connection) -> None:
        """It serves no more; said once, and only of a connection that was idle before."""

    def gone(self, connection: Connection) -> None:
        """Its socket is closed."""


class Exchange(Mailbox[bytes], eq=False):
    """One request and its response: a head, then the body's pieces. Its alarm is the connection's."""

    response: Head | None = None
    """None until the head has come."""
    stale: bool = False
    """A kept connection had been closed by the server before the request came: nobody has seen it."""

    @property
    def connection(self) -> Connection:
        """Which serves it."""
        return cast("Connection", self.alarm)

    @property
    def status(self) -> int:
        """0 until the head has come."""
        return self.response.status if self.response is not None else 0

    @property
    def headers(self) -> Mapping[str, str]:
        """See `Head`."""
        return self.response.headers if self.response is not None else _NOTHING

    @property
    def limits(self) -> Mapping[str, str]:
        """See `Head`."""
        return self.response.limits if self.response is not None else _NOTHING

    async def head(self, until: float) -> None:
        """Wait until status and headers are there. Raises TimeoutError at ``until`` (the loop's time), Fault."""
        while self.response is None:
            await self.turn(until)

    def turn(self, until: float) -> asyncio.Future[None]:
        """One wait of `head`, for who wants no coroutine for it."""
        if self.error is not None:
            raise self.error
        return self.alarm.wait(until)

    def full(self) -> None:
        """Its connection reads no more."""
        self.connection.full()

    def drained(self) -> None:
        """It reads again."""
        self.connection.drained()

    def leave(self, *, whole: bool = False) -> None:
        """Nobody reads on. What still comes is cut off at once, so that the provider stops working; but where the
        answer was ``whole`` and only the body's end mark is missing, that is waited for. May be called twice.
        """
        self.connection.leave(self, whole=whole)


class Connection(Alarm, asyncio.Protocol):
    """One connection; its owner decides which request it serves, and who sent that waits for it."""

    __slots__ = (
        "_awaited", "_barren", "_exchange", "_fields", "_framed", "_heard", "_held", "_linger", "_owner", "_parser",
        "_pieces", "_read_paused", "_reusable", "_segment", "_transport", "_unended", "_unsent", "_write_paused",
        "idle_since", "on_body", "on_message_begin", "on_message_complete", "sent_at", "served", "state", "streams",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: Owner) -> None:
        super().__init__(loop)
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._held = b""
        """A request that goes out at the end of this turn of the loop."""
        self._unsent: list[memoryview] = []
        """Of the request, last piece first."""
        self._linger: asyncio.TimerHandle | None = None
        self._fields: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._barren = 0
        self._awaited: list[None] = []
        """One item for each message that may begin: the parser pops it. Behind the answer there is none left to pop,
        which is an error.
        """
        self._unended: list[None] = []
        """One item for each message that has not ended: the parser pops it."""
        self._framed = self._reusable = False
        self._read_paused = self._write_paused = False
        self._heard = False
        """At least one byte came of the response."""
        self._segment = b""
        """A stream's first, whose head may be learnt."""
        self.streams = False
        """Responses aren't expected in one piece; who sends may say so."""
        self.state = State.OPENING
        self.idle_since = self.sent_at = 0.0
        self.served = 0
        self.on_body = self._pieces.append
        self.on_message_begin = self._awaited.pop
        self.on_message_complete = self._unended.pop
        self._parser = HttpResponseParser(self)

    def __repr__(self) -> str:
        return f"<Connection {self.state.name} served={self.served}>"

    # What the owner and the reader say.

    def ready(self) -> bool:
        """The connection stands (with TLS: it is verified). False if it broke since."""
        if self.state is _CLOSED or self._transport is None:
            return False
        self._move(_IDLE)
        self.idle_since = self.time()
        return True

    def usable(self) -> bool:
        """Idle, and no end of it was noticed yet."""
        return self.state is _IDLE and not self._wire().is_closing()

    def send(self, head: bytes, body: Sequence[bytes | memoryview]) -> Exchange:
        """Send a request whose ``head`` is complete and names the length of its ``body``, all pieces of it."""
        if self.state is not _IDLE:
            raise IllegalMove("Connection", self.state.name, _AWAITING_HEAD.name)
        self.state = _AWAITING_HEAD
        self._exchange = exchange = Exchange(self)
        self.sent_at = self.time()
        self._heard = False
        size = len(head)
        for piece in body:
            size += len(piece)
        if size <= WRITE_BYTES:
            self._held = b"".join((head, *body))
            self._owner.ending.write(self._release)
        else:
            if body and len(body[0]) <= WRITE_BYTES:  # what is before a long prompt's messages
                head, body = head + body[0], body[1:]
            self._unsent = [memoryview(piece) for piece in (head, *body)][::-1]
            self._pump()
        return exchange

    def leave(self, exchange: Exchange, *, whole: bool) -> None:
        """The reader of ``exchange`` is gone; see `Exchange.leave`."""
        if exchange is not self._exchange or self.state is _LINGERING:
            return
        if self.state is _HOLDING:
            self._rest()
        elif whole and self.state is _READING_BODY and not self._read_paused:
            self._move(_LINGERING)
            self._linger = self._loop.call_later(LINGER_S, self.abort)
        else:
            self.abort()

    def abort(self) -> None:
        """Close now; what was under way is lost. May be called twice."""
        before = self.state
        if before is _CLOSED:
            return
        self._move(_CLOSED)
        exchange, self._exchange = self._exchange, None
        self._unsent.clear()
        if exchange is not None:
            exchange.end(Fault(FaultKind.CUT, "the connection was closed by the router"))
        self._stop_timers()
        if self._transport is not None:
            self._transport.abort()
        else:
            self._owner.gone(self)  # It never had a socket.
        if before is not State.OPENING:
            self._owner.closed(self)

    # What the event loop says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport; the event loops have set TCP_NODELAY on it."""
        self._transport = cast("asyncio.Transport", transport)
        if self.state is _CLOSED:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take a segment; what body it holds goes into the mailbox, each chunk a piece."""
        exchange = self._exchange
        if exchange is None or self._held:
            self.abort()  # Nobody has asked: no later request may get this for an answer.
            return
        rest = data if self._heard else self._begin(exchange, data)
        if not rest:
            return
        refusal: str | None = None
        try:
            self._parser.feed_data(rest)
        except (HttpParserError, HttpParserUpgrade) as error:
            refusal = str(error.__context__ or error)
        pieces = self._pieces
        if pieces:
            self._barren = 0
            if exchange.tap is None:
                exchange.put_all(pieces, len(data))
            elif not exchange.tap(pieces):  # as in put_all: this spares a stream a call a chunk
                exchange.tap = None
                self.wake()
            pieces.clear()
        else:
            self._barren += len(data)
        if not self._unended:
            self._finish(exchange, sure=refusal is None)
        elif refusal is not None:
            self._fail(exchange, refusal)
        elif self._barren > MAX_HEAD_BYTES:
            self._fail(exchange, "too much that is neither head nor body")

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self._owner.gone(self)
        del self._parser  # it knows this object
        before = self.state
        if before is _CLOSED:
            return
        exchange, self._exchange = self._exchange, None
        self._unsent.clear()
        self._move(_CLOSED)
        self._stop_timers()
        if exchange is not None:
            exchange.end(self._loss(exchange, before, exc))
        if before is not State.OPENING:
            self._owner.closed(self)

    def pause_writing(self) -> None:
        """The network is slower than we."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """The network has caught up."""
        self._write_paused = False
        self._pump()

    # What the parser says. on_body, on_message_begin and on_message_complete are lists' own methods.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header; trailers are dropped with the next request."""
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Read the head; that of an interim response (100, 103) is dropped, a switch of protocols refused."""
        fields, self._fields = self._fields, []
        status = self._parser.get_status_code()
        if status < 200:
            if status == 101:
                raise Refused("a switch of protocols that nobody asked for")
            self._awaited.append(None)
            self._unended.append(None)
            return
        exchange = self._exchange
        assert exchange is not None
        if exchange.response is None:  # else it is known already
            head = read_head(status, fields)
            self._framed = head.framed
            self._reusable = self._parser.should_keep_alive()
            if self._reusable and self._segment:
                self._owner.heads.learn(self._segment, head)
            self._open(exchange, head)

    # What follows from it.

    def _begin(self, exchange: Exchange, data: bytes) -> bytes | memoryview:
        """The first of a response has come: what of it is left for the parser."""
        self._heard = True
        heads = self._owner.heads
        if not self.streams and len(data) <= HIGH_WATER_BYTES and not self._unsent:
            whole = heads.whole(data)
            if whole is not None:
                self._take(exchange, *whole)
                return b""
        self._barren = 0
        self._awaited[:] = self._unended[:] = _ONE
        self._fields.clear()
        self._segment = b""
        if self.streams:
            known = heads.chunked(data)
            if known is None:
                self._segment = data
            else:
                head, rest = known
                self._framed = self._reusable = True
                self._open(exchange, head)
                self._parser.feed_data(CHUNKED)
                return rest
        return data

    def _open(self, exchange: Exchange, head: Head) -> None:
        self.state = _READING_BODY
        exchange.response = head
        self.wake()

    def _take(self, exchange: Exchange, head: Head, body: bytes) -> None:
        """The response is whole, and all that came."""
        self._reusable = True
        self._open(exchange, head)
        if body:
            exchange.items.append(body)
        self._finish(exchange, sure=True)

    def _finish(self, exchange: Exchange, *, sure: bool) -> None:
        """The response is whole. ``sure``: nothing came behind it."""
        exchange.end()
        kept = sure and self._reusable and not self._unsent
        if not kept or self._wire().get_write_buffer_size():
            self.abort()  # A server that answers before it has read everything won't read the rest.
        elif self._read_paused and self.state is _READING_BODY:
            self._move(_HOLDING)
        else:
            self._rest()

    def _rest(self) -> None:
        self._exchange = None
        self.state = (
            _IDLE  # from the three in which a response is read, the only ones that it can end in
        )
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._read_paused:
            self._resume_reading()
        self.served += 1
        self.idle_since = self.time()
        self._owner.released(self)

    def _fail(self, exchange: Exchange, refusal: str) -> None:
        exchange.end(Fault(FaultKind.MALFORMED, f"the provider's answer is no HTTP: {refusal}"))
        self.abort()

    def _loss(self, exchange: Exchange, before: State, exc: Exception | None) -> Fault | None:
        if before is _AWAITING_HEAD:
            in_time = self.time() - self.sent_at < STALE_S
            exchange.stale = self.served > 0 and not self._heard and in_time
            return Fault(FaultKind.RESET, "the provider closed the connection without an answer")
        if self._framed or exc is not None:
            return Fault(
                FaultKind.CUT, "the provider closed the connection before its answer was whole"
            )
        return None

    def full(self) -> None:
        """The reader is behind: nothing is read until it took what waits."""
        if self.state is not _CLOSED:
            self._read_paused = True
            self._wire().pause_reading()

    def drained(self) -> None:
        """The reader took what waited."""
        if self.state is _HOLDING:
            self._rest()
        elif self.state is not _CLOSED:
            self._resume_reading()

    def _resume_reading(self) -> None:
        if self._read_paused:
            self._read_paused = False
            self._wire().resume_reading()

    def _release(self) -> None:
        """Send the request that is held, unless it was given up in the same turn."""
        held, self._held = self._held, b""
        if self.state is _AWAITING_HEAD and self._transport is not None:
            self._transport.write(held)

    def _pump(self) -> None:
        unsent = self._unsent
        if not unsent:
            return
        wire = self._wire()
        size = ENCRYPTED_PIECE_BYTES if wire.get_extra_info("sslcontext") else PIECE_BYTES
        while unsent and not self._write_paused:
            piece = unsent.pop()
            if len(piece) > size:
                unsent.append(piece[size:])
                piece = piece[:size]
            wire.write(piece)

    def _stop_timers(self) -> None:
        self.stop()
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    def _wire(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    def _move(self, to: State) -> None:
        if to not in _MOVES[self.state]:
            raise IllegalMove("Connection", self.state.name, to.name)
        self.state = to
