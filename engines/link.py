"""A node's end of one connection to a router.

Bytes become requests, one task each; events become frames. What a request says within one turn of
the loop goes out as one frame, however many tokens it is: a task per token, or a write per token,
would cost more than the tokens.

A router that stops reading first pauses its requests, whose events then wait in the engine, at most
their answers' length; after STUCK_S it is dropped. Whether the node goes on without routers is the
node's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from typing import Protocol, cast

from engines import protocol
from engines.base import Engine, EngineError, EngineInfo, ErrorKind, Event

HIGH_WATER_BYTES = 1 << 20
"""About ten thousand tokens on their way: far more than a reader that keeps up ever leaves."""

STUCK_S = 10.0
"""A router that hasn't read for so long is not coming back to what it asked."""

CLOSE_S = 1.0
"""What is still to be written at the end has so long to go out."""

log = logging.getLogger("engines.node")


class Host(Protocol):
    """What a link needs of its node."""

    engine: Engine | None
    info: EngineInfo | None
    draining: bool

    def greeted(self, link: Link) -> None:
        """Take a router that has said Hello."""

    def lost(self, link: Link) -> None:
        """Forget a router."""

    def drain(self) -> None:
        """Let running requests end, then end."""

    def settle(self) -> None:
        """Note that a request has ended."""


class Link(asyncio.Protocol):
    """One router's connection."""

    def __init__(self, host: Host) -> None:
        self.requests: dict[int, asyncio.Task[None]] = {}
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._decoder = protocol.FrameDecoder[protocol.ToNode](protocol.ToNode)
        self._transport: asyncio.Transport | None = None
        self._welcome = False
        self._outbox: dict[int, list[Event]] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self._stuck: asyncio.TimerHandle | None = None
        self._closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's isn't one by class
        self._transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what the router had asked for."""
        del exc  # the same is done whatever it was
        self.resume_writing()
        self._transport = None
        for task in self.requests.values():
            task.cancel()
        self._closed.set()
        self._host.lost(self)

    def pause_writing(self) -> None:
        """Hold the requests until the router reads."""
        self._writable.clear()
        if self._transport is not None:
            self._stuck = self._loop.call_later(STUCK_S, self._transport.abort)

    def resume_writing(self) -> None:
        """Let the requests go on."""
        self._writable.set()
        if self._stuck is not None:
            self._stuck.cancel()

    def data_received(self, data: bytes) -> None:
        """Obey the frames that are complete."""
        try:
            messages = self._decoder.feed(data)
        except protocol.FrameError as error:
            self._dismiss(str(error))
            return
        for message in messages:
            if self._transport is None or self._transport.is_closing():
                return
            self._obey(message)

    def send(self, message: protocol.ToRouter) -> None:
        """Write one frame, after the events that wait."""
        self._flush()
        self._write(protocol.encode(message))

    def beat(self, status: protocol.Status) -> None:
        """Write a heartbeat, unless the router doesn't read: it would only pile up."""
        if self._writable.is_set():
            self._write(protocol.encode(status))

    async def close(self) -> None:
        """Cancel the requests, let what is written go out and close."""
        for task in self.requests.values():
            task.cancel()
        if self._transport is None:
            return
        self._flush()
        self._transport.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), CLOSE_S)

    def _obey(self, message: protocol.ToNode) -> None:
        if isinstance(message, protocol.Hello):
            self._greet(message)
        elif not self._welcome:
            self._dismiss("the first frame must be Hello")
        elif isinstance(message, protocol.Generate):
            self._generate(message)
        elif isinstance(message, protocol.Cancel):
            self._cancel(message.id)
        else:
            self._host.drain()

    def _greet(self, hello: protocol.Hello) -> None:
        if self._welcome:
            self._dismiss("a second Hello")
        elif hello.version != protocol.VERSION:
            self._dismiss(
                f"the node speaks version {protocol.VERSION} of the protocol, "
                f"the router version {hello.version}"
            )
        else:
            self._welcome = True
            self._host.greeted(self)

    def _dismiss(self, reason: str) -> None:
        """End the connection, and say why."""
        log.warning("connection dismissed: %s", reason)
        self.send(protocol.Failed(0, "invalid", reason))
        if self._transport is not None:
            self._transport.close()

    def _generate(self, message: protocol.Generate) -> None:
        engine = self._host.engine
        if message.id in self.requests or message.id == 0:
            self._dismiss(f"request id {message.id} is in use")
        elif self._host.draining:
            self._fail(message.id, "busy", "the node is draining")
        elif engine is None or self._host.info is None:
            self._fail(message.id, "busy", "the model is being loaded")
        else:
            task = self._loop.create_task(self._answer(engine, message))
            self.requests[message.id] = task
            task.add_done_callback(functools.partial(self._ended, message.id))

    async def _answer(self, engine: Engine, message: protocol.Generate) -> None:
        try:
            async with contextlib.aclosing(engine.generate(message.request)) as events:
                async for event in events:
                    self._say(message.id, event)
                    if not self._writable.is_set():
                        await self._writable.wait()
        except EngineError as error:
            self._fail(message.id, error.kind, error.message)
        except Exception as error:  # the last resort: a router must never wait for nothing
            log.exception("request %d", message.id)
            self._fail(message.id, "internal", f"{type(error).__name__}: {error}")

    def _ended(self, id_: int, task: asyncio.Task[None]) -> None:
        if self.requests.get(id_) is task:
            del self.requests[id_]
        self._host.settle()

    def _cancel(self, id_: int) -> None:
        """Stop a request; its id is free at once, since the router drops what comes late."""
        task = self.requests.pop(id_, None)
        if task is not None:
            task.cancel()
            self._outbox.pop(id_, None)

    def _fail(self, id_: int, kind: ErrorKind, message: str) -> None:
        self.send(protocol.Failed(id_, kind, message))

    def _say(self, id_: int, event: Event) -> None:
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.setdefault(id_, []).append(event)

    def _flush(self) -> None:
        if not self._outbox:
            return
        outbox, self._outbox = self._outbox, {}
        frames = [
            protocol.encode(protocol.Events(id_, tuple(events))) for id_, events in outbox.items()
        ]
        self._write(b"".join(frames))

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
