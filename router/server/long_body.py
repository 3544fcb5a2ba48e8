"""The rest of a long request body, read from the network to where it stays.

aiohttp's way has four copies of each byte: the event loop's, the parser's, the pieces', the whole. Of a body whose
length the head says nothing needs to be parsed, so while it comes the connection's transport has another protocol,
whose buffer is the body itself. It gives the connection back when all has come, with a parser that has seen nothing:
the other one still waits for the bytes that passed it by.

It reads only when it is told to, and no more than TURN_BYTES, so that of many who send long bodies at once one after
the other is read from (`one_by_one`). Memory is taken as the bytes come, not as the head promises them.
"""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import StreamReader

    from router.server.connection import Connection

TURN_BYTES = 1024 * 1024
"""Reading so much takes 0.1 ms where memory is at hand, and 0.4 ms where the system has to give it."""

_DROPPED_BYTES = 64 * 1024
"""Of what nobody wants any more, at once."""


class LongBody(asyncio.BufferedProtocol):
    """One body. Whoever awaits it is cancelled when the connection is lost, by the connection itself."""

    def __init__(self, connection: Connection, payload: StreamReader, size: int) -> None:
        """Take the connection over, in the middle of a body of ``size`` bytes of which ``payload`` has the first."""
        transport = connection.transport
        assert transport is not None, "who has lost the connection is cancelled"
        self._connection = connection
        self._payload = payload
        self._transport = transport
        self._loop = connection.gate.loop
        self._waiter: asyncio.Future[None] | None = None
        self._left = size
        self._data = io.BytesIO()
        self._room = 0
        """So much fits into it."""
        self._place = memoryview(b"")
        """Where the next bytes go, of those that may come now."""
        while payload._buffer:  # noqa: SLF001 - taking a piece may have the parser hand out another
            self._left -= self._data.write(payload.read_nowait())
        self._size = size
        self._room = size - self._left
        if not payload.is_eof():
            transport.pause_reading()
            transport.set_protocol(self)

    # What the reader says

    @property
    def whole(self) -> bool:
        """All of it is here."""
        return not self._left

    async def more(self) -> None:
        """Read on until TURN_BYTES have come, or all."""
        at = self._size - self._left
        until = min(at + TURN_BYTES, self._size)
        if until > self._room:
            self._room = min(max(until, 2 * self._room), self._size)
            self._data.seek(self._room - 1)
            self._data.write(b"\0")
        self._place = self._data.getbuffer()[at:until]
        self._waiter = self._loop.create_future()
        self._transport.resume_reading()
        await self._waiter

    def take(self) -> bytes:
        """The body, which is whole."""
        return self._data.getvalue()

    def abandon(self) -> None:
        """Nobody wants it: drop what comes of it until the connection is closed."""
        if self._left:
            self._place = memoryview(bytearray(min(self._left, _DROPPED_BYTES)))
            self._waiter = None
            self._data.close()
            self._transport.resume_reading()

    # What the event loop says

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._place

    def buffer_updated(self, nbytes: int) -> None:
        """They are there."""
        self._left -= nbytes
        self._place = self._place[: self._left] if self._data.closed else self._place[nbytes:]
        if self._place:
            return
        self._place = memoryview(b"")
        self._transport.pause_reading()
        if not self._left:
            self._connection.renew_parser()
            self._transport.set_protocol(self._connection)
            self._transport.resume_reading()
            self._payload.feed_eof()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection cancels the request."""
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """An earlier answer isn't taken."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """It was taken."""
        self._connection.resume_writing()
