from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from router.backends.http.connection import Connection, State
from router.backends.http.dial import Dialer, origin_of
from router.backends.http.pool import Pool
from router.errors import Fault, FaultKind
from tests import upstream as up
from tests.backends.http.fakes import FakeTransport, drain
from tests.stepping import everywhere

OK = up.http(200, b"hello")


class FakeDialer:
    """Makes connections without a network, or waits, or fails."""

    def __init__(self) -> None:
        self.made: list[Connection] = []
        self.gate: asyncio.Event | None = None
        self.fault: Fault | None = None

    async def dial(self, make: Callable[[], Connection]) -> Connection:
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        connection = make()
        connection.connection_made(FakeTransport(connection))
        self.made.append(connection)
        return connection


class Setting:
    def __init__(self, max_connections: int = 2, keep_alive_s: float = 60) -> None:
        self.loop = asyncio.get_running_loop()
        self.dialer = FakeDialer()
        self.pool = Pool(
            self.loop, self.dialer, max_connections=max_connections, keep_alive_s=keep_alive_s
        )

    async def acquire(self, *, fresh: bool = False, wait_s: float = 5) -> Connection:
        return await self.pool.acquire(self.loop.time() + wait_s, fresh=fresh)

    def start(self, *, fresh: bool = False, wait_s: float = 5) -> asyncio.Task[Connection]:
        return asyncio.ensure_future(self.acquire(fresh=fresh, wait_s=wait_s))


async def serve(connection: Connection) -> None:
    exchange = connection.send(b"", [b""])
    connection.data_received(OK)
    await drain(exchange)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_last_used_is_used_first() -> None:
    setting = Setting()
    one, two = await setting.acquire(), await setting.acquire()
    await serve(one)
    await serve(two)
    assert (setting.pool.in_use, setting.pool.idle) == (0, 2)
    assert await setting.acquire() is two
    assert await setting.acquire() is one
    assert len(setting.dialer.made) == 2


async def test_waiters_are_served_in_their_order() -> None:
    setting = Setting(max_connections=1)
    connection = await setting.acquire()
    first, second = setting.start(), setting.start()
    await settle()
    assert setting.pool.queued == 2
    await serve(connection)
    assert await first is connection
    assert not second.done()
    connection.send(b"", [b""])
    connection.abort()
    other = await second
    assert other is not connection
    assert (setting.pool.in_use, setting.pool.queued) == (1, 0)


async def test_waiting_has_a_limit() -> None:
    setting = Setting(max_connections=1)
    connection = await setting.acquire()
    with pytest.raises(TimeoutError):
        await setting.acquire(wait_s=0.01)
    assert (setting.pool.in_use, setting.pool.queued) == (1, 0)
    await serve(connection)
    assert await setting.acquire() is connection


async def test_connecting_has_a_limit() -> None:
    setting = Setting(max_connections=1)
    setting.dialer.gate = asyncio.Event()
    with pytest.raises(TimeoutError):
        await setting.acquire(wait_s=0.01)
    assert setting.pool.in_use == 0


async def test_a_cancelled_waiter_leaves_nothing() -> None:
    setting = Setting(max_connections=1)
    connection = await setting.acquire()
    first, second = setting.start(), setting.start()
    await settle()
    first.cancel()
    await settle()
    assert setting.pool.queued == 1
    await serve(connection)
    assert await second is connection


async def test_a_waiter_cancelled_as_it_is_served_hands_on() -> None:
    setting = Setting(max_connections=1)
    connection = await setting.acquire()
    first, second = setting.start(), setting.start()
    await settle()
    await serve(connection)  # Gives it to the first, whose task hasn't run.
    first.cancel()
    assert await second is connection
    with pytest.raises(asyncio.CancelledError):
        await first
    await serve(connection)
    assert (setting.pool.in_use, setting.pool.idle) == (0, 1)


async def test_a_waiter_cancelled_as_it_may_open_hands_on() -> None:
    setting = Setting(max_connections=1)
    connection = await setting.acquire()
    first, second = setting.start(), setting.start()
    await settle()
    connection.abort()
    first.cancel()
    assert await second is setting.dialer.made[1]
    assert setting.pool.in_use == 1


async def test_a_waiter_whose_connection_breaks_at_once_opens_one() -> None:
    setting = Setting(max_connections=1)
    connection = await setting.acquire()
    waiter = setting.start()
    await settle()
    exchange = connection.send(b"", [b""])
    connection.data_received(OK)
    connection.data_received(b"junk")
    await drain(exchange)
    assert await waiter is setting.dialer.made[1]
    assert setting.pool.in_use == 1


async def test_cancelling_while_opening_frees_the_slot_for_the_next() -> None:
    setting = Setting(max_connections=1)
    setting.dialer.gate = asyncio.Event()
    first, second = setting.start(), setting.start()
    await settle()
    first.cancel()
    setting.dialer.gate.set()
    assert (await second).state is State.IDLE
    assert setting.pool.in_use == 1


async def test_a_failure_to_open_frees_the_slot() -> None:
    setting = Setting(max_connections=1)
    setting.dialer.fault = Fault(FaultKind.CONNECT, "no")
    for _ in range(3):
        with pytest.raises(Fault):
            await setting.acquire()
    assert setting.pool.in_use == 0


async def test_what_never_stood_is_forgotten(unused_tcp_port: int) -> None:
    """Refused, and given up on the way; else a provider that is down would fill memory."""
    loop = asyncio.get_running_loop()
    origin = origin_of(f"http://127.0.0.1:{unused_tcp_port}")
    pool = Pool(loop, Dialer(origin), max_connections=9, keep_alive_s=60)
    for _ in range(3):
        with pytest.raises(Fault):
            await pool.acquire(loop.time() + 5)
    assert pool._sockets == set()
    async with up.Upstream() as upstream:
        dialer = Dialer(origin_of(upstream.url))
        pool = Pool(loop, dialer, max_connections=9, keep_alive_s=60)

        async def use() -> None:
            connection = await pool.acquire(loop.time() + 5, fresh=True)
            connection.abort()

        async for where in everywhere(use):
            await settle()
            assert (pool.in_use, pool._sockets) == (0, set()), where


async def test_a_fresh_one_is_never_an_idle_one() -> None:
    setting = Setting(max_connections=2)
    one = await setting.acquire()
    await serve(one)
    two = await setting.acquire(fresh=True)
    assert two is not one
    await serve(two)
    three = await setting.acquire(fresh=True)
    assert three not in {one, two}
    assert one.state is State.CLOSED
    assert (setting.pool.in_use, setting.pool.idle) == (1, 1)


async def test_idle_connections_expire() -> None:
    setting = Setting(keep_alive_s=0.02)
    one = await setting.acquire()
    await serve(one)
    async with asyncio.timeout(1):
        while one.state is not State.CLOSED:
            await asyncio.sleep(0.005)
    assert setting.pool.idle == 0
    two = await setting.acquire()
    await serve(two)
    two.idle_since -= 1
    assert await setting.acquire() is not two
    assert two.state is State.CLOSED


async def test_what_breaks_while_idle_is_forgotten() -> None:
    setting = Setting()
    one, two = await setting.acquire(), await setting.acquire()
    await serve(one)
    await serve(two)
    one.connection_lost(None)
    two.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert (setting.pool.in_use, setting.pool.idle) == (0, 0)


async def test_close_ends_everything() -> None:
    setting = Setting(max_connections=2)
    busy, idle = await setting.acquire(), await setting.acquire()
    exchange = busy.send(b"", [b""])
    waiter = setting.start()
    await settle()
    closing = asyncio.ensure_future(setting.pool.close())
    await settle()
    for connection in (busy, idle):
        assert connection.state is State.CLOSED
        connection.connection_lost(None)
    await closing
    for coming in (waiter, drain(exchange), setting.acquire()):
        with pytest.raises(Fault):
            await coming
    assert setting.pool.in_use == 0


@pytest.mark.parametrize("seed", range(20))
async def test_counts_balance_after_any_mixture(seed: int) -> None:
    import random

    rng = random.Random(seed)
    setting = Setting(max_connections=3)
    busy: list[Connection] = []

    async def client() -> None:
        connection = await setting.acquire(fresh=rng.random() < 0.2)
        busy.append(connection)
        exchange = connection.send(b"", [b""])
        await asyncio.sleep(0)
        act = rng.random()
        if act < 0.6:
            connection.data_received(OK)
            await drain(exchange)
        elif act < 0.8:
            exchange.leave()
        else:
            connection.connection_lost(None)

    tasks = [asyncio.ensure_future(client()) for _ in range(40)]
    while not all(task.done() for task in tasks):
        assert 0 <= setting.pool.in_use <= 3
        if rng.random() < 0.3:
            rng.choice(tasks).cancel()
        await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    # A cancelled client that held a connection would have left the exchange: here it is left for it.
    for connection in busy:
        if connection.state not in {State.IDLE, State.CLOSED}:
            connection.abort()
    assert (setting.pool.in_use, setting.pool.queued) == (0, 0)
