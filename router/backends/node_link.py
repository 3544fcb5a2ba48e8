"""The router's end of a node's socket: one connection, any number of requests, told apart by their numbers.

A link is an Engine, so whoever serves from an engine in this process serves from a node by the same code. Bytes come
in through an asyncio.Protocol and go straight into the mailbox of their request: no reader task, no queue between.
A cancel is written in the turn of the loop that asked for it.

A connection that is lost, or that says something unreadable, ends every open request with EngineError("died"); the
link stays dead. Starting a node again, and dialling its new link, is the supervisor's business.

Source: engines.protocol, which both ends share.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, Callable
from typing import cast

import msgspec

from engines.base import EngineError, EngineInfo, Event, GenerateRequest, Health, Usage
from engines.protocol import (
    MAX_FRAME_BYTES,
    VERSION,
    Cancel,
    Drain,
    Events,
    Failed,
    FrameDecoder,
    FrameError,
    Generate,
    Hello,
    Loading,
    Ready,
    Status,
    ToNode,
    ToRouter,
    encode,
)
from router.backends.engine import MAX_WAITING_BYTES, Unread, weight
from router.backends.mailbox import Alarm, Mailbox

MAX_UNSENT_BYTES = 64 * 1024 * 1024
"""Requests that a node hasn't read yet: some thousand long ones. Past it the node is busy, whatever it does."""


class Heard(msgspec.Struct, frozen=True):
    """A node's last heartbeat, and when it came: monotonic seconds, the loop's time."""

    status: Status
    at: float


class Listeners(msgspec.Struct, frozen=True):
    """Who hears what the node says of itself. Called in the loop, synchronously."""

    on_loading: Callable[[float | None], None] = lambda _done: None
    on_status: Callable[[Status], None] = lambda _status: None
    on_lost: Callable[[EngineError], None] = lambda _error: None
    """The connection is gone, once; called before the open requests hear of it. Not after ``close``."""


class NodeLink:
    """An engine in another process."""

    def __init__(self, path: str, listeners: Listeners | None = None) -> None:
        """``path`` is the Unix socket that the node listens on."""
        self._path = path
        self._listeners = listeners or Listeners()
        self._connection: _Connection | None = None
        self.info: EngineInfo | None = None
        self.heard: Heard | None = None

    async def dial(self) -> None:
        """Connect and say hello. Raises OSError while nobody listens."""
        loop = asyncio.get_running_loop()
        connection = _Connection(loop, self)
        await loop.create_unix_connection(lambda: connection, self._path)
        self._connection = connection
        connection.send(Hello())

    async def start(self) -> EngineInfo:
        """Dial, if that wasn't done, and wait until the node can take requests.

        Raises EngineError: ``died`` where the connection failed or ended, ``unsupported`` where the node speaks
        another version of the protocol, otherwise what the node said. The link is closed then.
        """
        try:
            if self._connection is None:
                await self.dial()
            connection = cast("_Connection", self._connection)
            self.info = await connection.ready
        except OSError as error:
            raise EngineError("died", f"no node listens on its socket: {error}") from error
        except BaseException:
            await self.close()
            raise
        return self.info

    def begin(self, request: GenerateRequest) -> NodeGeneration:
        """Start ``request``; its events are taken from what is returned.

        Raises EngineError: ``died`` without a connection, ``busy`` where the node doesn't read what it is sent.
        """
        connection = self._connection
        if connection is None or self.info is None:
            raise EngineError("died", "the engine's process is not ready")
        return connection.begin(request)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Events of one request; see engines.base.Engine."""
        generation = self.begin(request)
        try:
            while events := await generation.take(math.inf):
                for event in events:
                    yield event
        finally:
            generation.cancel()

    def health(self) -> Health:
        """What the last heartbeat said; ``heard`` says when."""
        return self.heard.status.health if self.heard is not None else Health()

    @property
    def open_requests(self) -> int:
        """Requests that are neither over nor cancelled."""
        return len(self._connection.open) if self._connection is not None else 0

    def drain(self) -> None:
        """Ask the node to end what it runs, take nothing new, and exit."""
        if self._connection is not None:
            self._connection.send(Drain())

    async def close(self) -> None:
        """Hang up; open requests die. Returns when the socket is closed. May be called twice."""
        if self._connection is not None:
            await self._connection.close()

    def loading(self, done: float | None) -> None:
        """The node said how far its loading is."""
        self._listeners.on_loading(done)

    def status(self, status: Status, at: float) -> None:
        """A heartbeat came."""
        self.heard = Heard(status, at)
        self._listeners.on_status(status)

    def lost(self, error: EngineError) -> None:
        """The connection is gone."""
        self._listeners.on_lost(error)


class NodeGeneration:
    """One request at a node."""

    __slots__ = ("_box", "_connection", "_id")

    def __init__(self, connection: _Connection, number: int) -> None:
        self._connection = connection
        self._id = number
        self._box: Mailbox[Event] = Mailbox(
            Alarm(connection.loop), high_water=MAX_WAITING_BYTES, on_full=self._overflow
        )

    async def take(self, until: float) -> list[Event]:
        """Every event that has come; ``[]`` after the last. Raises TimeoutError at ``until``, or EngineError."""
        return await self._box.take(until)

    def cancel(self) -> None:
        """Stop the work: the node is told before this returns. Nothing where it is over."""
        if self._connection.forget(self._id):
            self._connection.send(Cancel(self._id))
            self._box.end(EngineError("internal", "the request was cancelled"))
        self._box.stop_timer()

    def put(self, events: tuple[Event, ...]) -> None:
        """Events came."""
        for event in events:
            self._box.put(event, weight(event))
        if events and isinstance(events[-1], Usage):
            self._connection.forget(self._id)
            self._box.end()

    def fail(self, error: EngineError) -> None:
        """The request is over without an answer."""
        self._box.end(error)

    def _overflow(self) -> None:
        self._box.end(Unread())
        self.cancel()


class _Connection(asyncio.Protocol):
    """The socket, and the requests that go over it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, link: NodeLink) -> None:
        self.loop = loop
        self.open: dict[int, NodeGeneration] = {}
        self.ready: asyncio.Future[EngineInfo] = loop.create_future()
        self._link = link
        self._numbers = itertools.count(1)
        self._decoder: FrameDecoder[ToRouter] = FrameDecoder(ToRouter)
        self._transport: asyncio.Transport | None = None
        self._error: EngineError | None = None
        self._gone: asyncio.Future[None] = loop.create_future()
        self._clogged = False

    def begin(self, request: GenerateRequest) -> NodeGeneration:
        if self._error is not None:
            raise EngineError("died", self._error.message)
        if self._clogged:
            raise EngineError("busy", "the engine's process does not read what it is sent")
        number = next(self._numbers)
        frame = encode(Generate(number, request))
        if len(frame) > MAX_FRAME_BYTES:
            raise EngineError("invalid", f"a request of {len(frame)} bytes is too large")
        generation = self.open[number] = NodeGeneration(self, number)
        self._write(frame)
        return generation

    def forget(self, number: int) -> bool:
        """Nothing more is wanted of that request; whether it was open."""
        return self.open.pop(number, None) is not None

    def send(self, message: ToNode) -> None:
        """Write ``message``; dropped where the connection is gone."""
        self._write(encode(message))

    async def close(self) -> None:
        self._fail(EngineError("died", "the link was closed"), tell=False)
        await asyncio.shield(self._gone)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES)

    def pause_writing(self) -> None:
        self._clogged = True

    def resume_writing(self) -> None:
        self._clogged = False

    def data_received(self, data: bytes) -> None:
        try:
            messages = self._decoder.feed(data)
        except FrameError as error:
            self._fail(EngineError("internal", f"its process spoke nonsense: {error}"))
            return
        for message in messages:
            self._hear(message)

    def connection_lost(self, exc: Exception | None) -> None:
        why = f": {exc}" if exc is not None else ""
        self._fail(EngineError("died", f"the connection to the engine's process is lost{why}"))
        if not self._gone.done():
            self._gone.set_result(None)

    def _hear(self, message: ToRouter) -> None:
        if self._error is not None:
            return
        if isinstance(message, Events):
            generation = self.open.get(message.id)
            if generation is not None:
                generation.put(message.events)
        elif isinstance(message, Status):
            self._link.status(message, self.loop.time())
        elif isinstance(message, Failed):
            self._hear_failure(message)
        elif isinstance(message, Loading):
            self._link.loading(message.done)
        else:
            self._hear_ready(message)

    def _hear_failure(self, message: Failed) -> None:
        error = EngineError(message.kind, message.message)
        if message.id == 0:
            self._fail(error)
            return
        generation = self.open.pop(message.id, None)
        if generation is not None:
            generation.fail(error)

    def _hear_ready(self, message: Ready) -> None:
        if message.version != VERSION:
            text = (
                f"its process speaks version {message.version} of the protocol, "
                f"this router version {VERSION}"
            )
            self._fail(EngineError("unsupported", text))
        elif not self.ready.done():
            self.ready.set_result(message.info)

    def _fail(self, error: EngineError, *, tell: bool = True) -> None:
        """The end of the connection, the first time; everyone who waits hears of it."""
        if self._error is not None:
            return
        self._error = error
        if self._transport is not None:
            self._transport.abort()
        if tell:
            self._link.lost(error)
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()  # seen, should nobody wait
        requests, self.open = self.open, {}
        for generation in requests.values():
            generation.fail(EngineError("died", error.message))

    def _write(self, frame: bytes) -> None:
        if self._error is None and self._transport is not None:
            self._transport.write(frame)
