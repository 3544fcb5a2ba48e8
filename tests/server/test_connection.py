"""One connection of a client, without a socket."""

import asyncio
import gc

from router.server.connection import Connection, Gate, Limits

REQUEST = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"


class Transport(asyncio.Transport):
    def __init__(self, protocol):
        super().__init__()
        self.protocol = protocol
        self.written = b""
        self.closing = False

    def write(self, data):
        self.written += data

    def is_closing(self):
        return self.closing

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        pass

    resume_reading = pause_reading

    def close(self):
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close


class Server:
    """A gate whose answers wait for `go`."""

    def __init__(self, **limits):
        self.asked = 0
        self.cancelled = 0
        self.go = asyncio.Event()
        self.gate = Gate(self._serve, Limits(max_connections=2, max_body_bytes=1000, **limits))

    async def _serve(self, exchange):
        self.asked += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        exchange.body_read = True
        exchange.answer(200, b"{}")

    def connect(self):
        protocol = self.gate()
        protocol.connection_made(transport := Transport(protocol))
        return protocol, transport


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_who_leaves_with_his_request_is_never_served_and_not_counted():
    """The request's task is made and hasn't run when the connection is lost."""
    server = Server()
    protocol, _ = server.connect()
    protocol.data_received(REQUEST)
    protocol.connection_lost(None)
    await turns()
    assert server.asked == 0
    assert not server.gate.connections


async def test_who_leaves_while_served_cancels_and_counts_until_then():
    server = Server()
    protocol, _ = server.connect()
    protocol.data_received(REQUEST)
    await turns()
    assert server.asked == 1
    protocol.connection_lost(None)
    assert server.gate.connections
    await turns()
    assert server.cancelled == 1
    assert not server.gate.connections


async def test_who_leaves_as_his_next_request_comes_ends_the_task():
    server = Server()
    server.go.set()
    protocol, transport = server.connect()
    protocol.data_received(REQUEST)
    await turns()
    assert not server.gate.busy
    protocol.data_received(REQUEST)
    assert server.gate.busy
    protocol.connection_lost(None)
    await turns()
    assert (server.asked, server.cancelled) == (1, 0)
    assert not server.gate.connections
    assert transport.written.count(b"HTTP/1.1 200") == 1


async def test_an_idle_connection_is_closed_in_time_and_one_that_is_asked_is_not():
    server = Server(keep_alive_s=0.02)
    server.go.set()
    idle, asked = server.connect(), server.connect()
    for protocol, _ in (idle, asked):
        protocol.data_received(REQUEST)
    await turns()
    server.go.clear()
    asked[0].data_received(REQUEST)
    await asyncio.sleep(0.05)
    assert idle[1].closing
    assert not asked[1].closing
    server.go.set()
    await asyncio.sleep(0.05)
    assert asked[1].written.count(b"HTTP/1.1 200") == 2
    assert asked[1].closing
    assert not server.gate.connections


async def test_the_clock_of_a_head_is_not_put_off_by_its_parts():
    server = Server(header_timeout_s=0.04)
    _, silent = server.connect()
    protocol, drips = server.connect()
    for at in range(6):
        protocol.data_received(REQUEST[at : at + 1])
        await asyncio.sleep(0.01)
    assert silent.closing
    assert drips.closing
    assert not server.gate.connections


async def test_what_is_refused_is_not_counted():
    server = Server()
    held = [server.connect() for _ in range(2)]
    protocol, transport = server.connect()
    assert transport.written.startswith(b"HTTP/1.1 503")
    protocol.data_received(REQUEST)
    await turns()
    assert server.asked == 0
    assert len(server.gate.connections) == 2
    for one, _ in held:
        one.connection_lost(None)
    assert not server.gate.connections


async def test_nothing_of_a_connection_is_left_to_the_garbage_collector():
    server = Server()
    server.go.set()

    gc.collect()
    known = {id(one) for one in gc.get_objects() if isinstance(one, Connection)}

    def left():
        return [
            one for one in gc.get_objects() if isinstance(one, Connection) and id(one) not in known
        ]

    async def once():
        protocol, transport = server.connect()
        protocol.data_received(REQUEST)
        await turns()
        protocol.connection_lost(None)
        transport.protocol = None
        assert left()

    gc.disable()
    try:
        await once()
        await turns()
        assert not left()
    finally:
        gc.enable()


async def test_a_connection_that_asked_nothing_has_no_task():
    before = len(asyncio.all_tasks())
    server = Server()
    protocol, _ = server.connect()
    assert isinstance(protocol, Connection)
    assert len(asyncio.all_tasks()) == before
    assert not server.gate.busy
    protocol.connection_lost(None)
