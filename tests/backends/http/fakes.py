"""A transport without a network and an owner that keeps a diary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from router.backends.http.connection import Connection, Exchange
from router.backends.http.head import Heads
from tests.upstream import Segments, whole


class FakeTransport(asyncio.Transport):
    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection
        self.written: list[bytes] = []
        self.aborted = False
        self.reading = True
        self.pause_after: int | None = None

    def write(self, data) -> None:
        self.written.append(bytes(data))
        if self.pause_after is not None and len(self.written) % self.pause_after == 0:
            self.connection.pause_writing()

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True


class Now:
    """An end of the turn that is there at once."""

    def write(self, call: Callable[[], None]) -> None:
        call()


class Diary:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.ending = Now()
        self.heads = Heads()

    def released(self, connection: Connection) -> None:
        self.said.append("released")

    def closed(self, connection: Connection) -> None:
        self.said.append("closed")

    def gone(self, connection: Connection) -> None:
        self.said.append("gone")


class Wire:
    """A connection that stands, with the pieces around it."""

    def __init__(self) -> None:
        self.owner = Diary()
        self.connection = Connection(asyncio.get_running_loop(), self.owner)
        self.transport = FakeTransport(self.connection)
        self.connection.connection_made(self.transport)
        assert self.connection.ready()

    def send(self, body: bytes = b"{}") -> Exchange:
        return self.connection.send(b"POST / HTTP/1.1\r\n\r\n", [body])

    def answer(self, data: bytes, pieces: Segments = whole) -> None:
        for piece in pieces(data):
            if piece and not self.transport.aborted:
                self.connection.data_received(piece)

    async def exchange(
        self, data: bytes, pieces: Segments = whole
    ) -> tuple[int, dict[str, str], bytes]:
        exchange = self.send()
        self.answer(data, pieces)
        return await drain(exchange)


async def drain(exchange: Exchange) -> tuple[int, dict[str, str], bytes]:
    until = asyncio.get_running_loop().time() + 5
    await exchange.head(until)
    body = b""
    while got := await exchange.take(until):
        body += b"".join(got)
    return exchange.status, exchange.headers, body
