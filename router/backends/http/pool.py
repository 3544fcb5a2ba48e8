"""The connections to one provider: kept, counted and handed out.

`Pool.take` and `Pool._assign` decide, without waiting: an idle connection (the last used first, so that surplus
ones grow old and go), else the right to open one, else a place in the queue. The awaits around them only carry
out. A slot is counted from the decision to open until the connection is closed, so the limit holds at every await.

It doesn't retry, judge answers or know of requests.
"""

from __future__ import annotations

import asyncio
from collections import deque

from router.backends.http.connection import Connection
from router.backends.http.dial import Dialer
from router.backends.http.head import Heads
from router.ending import Ending
from router.errors import Fault, FaultKind

GOODBYE_S = 1.0
"""How long `Pool.close` waits for sockets to be closed; a loop that runs needs two of its rounds."""


class Pool:
    """At most so many connections to one origin."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        dialer: Dialer,
        *,
        max_connections: int,
        keep_alive_s: float,
    ) -> None:
        """An idle connection is closed after ``keep_alive_s``."""
        self._loop = loop
        self._dialer = dialer
        self._max = max_connections
        self._keep_alive_s = keep_alive_s
        self._idle: list[Connection] = []  # The last used last, thus sorted by age.
        self._slots_taken = 0
        self._sockets: set[Connection] = set()
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._all_gone: asyncio.Event | None = None
        self.ending = Ending()
        self.heads = Heads()

    @property
    def in_use(self) -> int:
        """Connections that serve or are being opened."""
        return self._slots_taken - len(self._idle)

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    @property
    def queued(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiters)

    def take(self) -> Connection | None:
        """The idle connection that was used last, or None. Such as have expired or broken are closed on the way."""
        idle = self._idle
        if idle:
            youngest_expired = self._loop.time() - self._keep_alive_s
            while idle:
                connection = idle.pop()
                if connection.idle_since > youngest_expired and connection.usable():
                    return connection
                connection.abort()
        return None

    async def acquire(self, until: float, *, fresh: bool = False) -> Connection:
        """A connection that nobody else has; a ``fresh`` one was opened for this call.

        Raises TimeoutError at ``until`` (the loop's time), Fault. Cancelling it leaves nothing behind. With
        ``fresh`` and every slot in use, a connection that another request has just given back is taken too.
        """
        while not self._closed:
            connection = None if fresh else self.take()
            if connection is not None:
                return connection
            if fresh and self._idle and self._slots_taken >= self._max:
                self._idle[0].abort()
            if self._slots_taken >= self._max:
                connection = await self._queue(until)
            else:
                self._slots_taken += 1
            if connection is None:
                return await self._open(until)
            if connection.usable():
                return connection
            connection.abort()  # It broke between being handed over and this task's turn.
        raise Fault(FaultKind.LOCAL, "the router is closing")

    async def close(self) -> None:
        """Close everything, in use or not; waits until the sockets are closed."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(Fault(FaultKind.LOCAL, "the router is closing"))
        self._waiters.clear()
        for connection in list(self._sockets):
            connection.abort()
        if self._sockets:
            self._all_gone = asyncio.Event()
            try:
                async with asyncio.timeout(GOODBYE_S):
                    await self._all_gone.wait()
            except TimeoutError:
                return

    # What connections say.

    def released(self, connection: Connection) -> None:
        """An answer is whole: the connection is idle again."""
        if self._closed:
            connection.abort()
            return
        self._idle.append(connection)
        if self._waiters:
            self._assign()
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._keep_alive_s, self._sweep)

    def closed(self, connection: Connection) -> None:
        """A connection serves no more: its slot is free."""
        if connection in self._idle:
            self._idle.remove(connection)
        self._free_slot()

    def gone(self, connection: Connection) -> None:
        """A connection's socket is closed."""
        self._sockets.discard(connection)
        if self._all_gone is not None and not self._sockets:
            self._all_gone.set()

    # What follows.

    def _assign(self) -> None:
        """Give what is free to those who wait, in their order. None as a result is the right to open."""
        while self._waiters:
            if self._waiters[0].done():  # Cancelled; its task hasn't run yet.
                self._waiters.popleft()
                continue
            connection = self.take()
            if connection is None:
                if self._slots_taken >= self._max:
                    return
                self._slots_taken += 1
            self._waiters.popleft().set_result(connection)

    async def _queue(self, until: float) -> Connection | None:
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout_at(until):
                return await waiter
        except BaseException:
            self._withdraw(waiter)
            raise

    def _withdraw(self, waiter: asyncio.Future[Connection | None]) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if not waiter.done() or waiter.cancelled() or waiter.exception() is not None:
            return
        connection = waiter.result()  # Given in the same moment as the wait was ended.
        if connection is None:
            self._free_slot()
        elif connection.usable():
            self.released(connection)

    async def _open(self, until: float) -> Connection:
        try:
            async with asyncio.timeout_at(until):
                connection = await self._dialer.dial(self._make)
        except BaseException:
            self._free_slot()
            raise
        if not connection.ready():
            self._free_slot()
            raise Fault(FaultKind.CONNECT, "the provider closed the connection at once")
        if self._closed:
            connection.abort()
            raise Fault(FaultKind.LOCAL, "the router is closing")
        return connection

    def _make(self) -> Connection:
        connection = Connection(self._loop, self)
        self._sockets.add(connection)
        return connection

    def _free_slot(self) -> None:
        self._slots_taken -= 1
        if self._waiters:
            self._assign()

    def _sweep(self) -> None:
        self._sweeper = None
        expired = self._loop.time() - self._keep_alive_s
        while self._idle and self._idle[0].idle_since <= expired:
            self._idle[0].abort()
        if self._idle:
            self._sweeper = self._loop.call_at(
                self._idle[0].idle_since + self._keep_alive_s, self._sweep
            )
