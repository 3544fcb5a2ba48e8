"""What the router's own code takes for a request: the whole server in one process, without a socket.

    python -m benchmarks.in_process [--requests 20000] [--policy power_of_two] [--json FILE]

The connections of clients and providers end in objects that answer at once, so neither the kernel nor another process
has a part in the figures, and they hold to a hundredth or two where those of `benchmarks.overhead` vary by a tenth:
what a change costs or saves shows here first. Everything is on: a key with limits, four targets, request ids, metrics,
usage records in SQLite, a log at ``info``. CPU microseconds a request of the event loop's thread and of the process, in
which SQLite has a thread of its own; the best of several rounds.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, cast, get_args
from unittest.mock import patch

import msgspec

from benchmarks.running import chat, keep, options
from benchmarks.upstream import Connection as Upstream
from router.app import Router
from router.backends.http.connection import Connection
from router.backends.http.dial import Dialer
from router.config.schema import Accounts, Config, Key, Model, Policy, Price, Provider, Target, Tier
from router.log import Lines, RequestLog, install
from router.metrics import Metrics
from router.server.connection import Gate, Limits
from router.server.front import Front
from router.server.serving import api_routes

SECRET = "sk-in-process-0123456789"
CONNECTIONS = 32
ROUNDS = 5
WARM_UP = 0.2
"""Of a round's requests: the interpreter specialises code that runs often."""
WORKLOADS = {"whole answer": (False, Upstream.WHOLE), "stream, 64 chunks at once": (True, Upstream.STREAM)}  # fmt: skip
"""By name: whether it streams, and what the provider answers."""
MIB = 1 << 20


class Cost(msgspec.Struct, frozen=True):
    """Of one request."""

    workload: str
    policy: str
    loop_us: float
    process_us: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = options("in_process", __doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="of each round")
    parser.add_argument("--policy", choices=get_args(Policy), default="power_of_two")
    arguments = parser.parse_args(argv)
    if arguments.requests < CONNECTIONS:
        parser.error(f"--requests: at least {CONNECTIONS}")
    costs = _run(arguments.policy, arguments.requests)
    print(f"{'CPU µs/request':28}{'loop':>8}{'process':>9}")
    for one in costs:
        print(f"{one.workload:28}{one.loop_us:8.1f}{one.process_us:9.1f}")
    keep(costs, arguments.json)
    return 0


def _run(policy: Policy, requests: int) -> list[Cost]:
    """On uvloop where it is, as `nenya serve` does; the log goes nowhere."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        install("info", "json", nowhere)
        try:
            return _runner()(_costs(policy, requests))
        finally:
            for handler in [one for one in logging.root.handlers if isinstance(one, Lines)]:
                logging.root.removeHandler(handler)
                handler.close()


def _runner() -> Callable[[Coroutine[None, None, list[Cost]]], list[Cost]]:
    try:
        import uvloop  # noqa: PLC0415 - not on every system
    except ImportError:
        return asyncio.run
    return cast("Callable[[Coroutine[None, None, list[Cost]]], list[Cost]]", uvloop.run)


async def _costs(policy: Policy, requests: int) -> list[Cost]:
    costs = []
    for workload, (streams, answer) in WORKLOADS.items():
        with tempfile.TemporaryDirectory() as home:
            router = Router(_config(policy, home))
            router.listen(Metrics(router.stats))
            router.listen(RequestLog())
            gate = Gate(
                Front(api_routes(router), router.authenticate),
                Limits(max_connections=CONNECTIONS, max_body_bytes=MIB),
            )
            with patch.object(Dialer, "dial", _answers(answer)):
                async with router:
                    loop_us, process_us = await _measure(gate, streams=streams, requests=requests)
                gate.abort()
        costs.append(Cost(workload, policy, loop_us, process_us))
    return costs


def _config(policy: Policy, home: str) -> Config:
    names = "abcd"
    provider = Provider(base_url="http://127.0.0.1:1/v1")
    return Config(
        accounts=Accounts(database=f"{home}/books.db", pepper="0123456789abcdef"),
        tiers={"large": Tier(rpm=10**8, tpm=10**11)},
        keys=[Key(id="me", secret=SECRET, tier="large")],
        providers=dict.fromkeys(names, provider),
        models={
            "m": Model(
                targets=[Target(provider=name) for name in names],
                policy=policy,
                price=Price(input=0.1, output=0.2),
            )
        },
    )


async def _measure(gate: Gate, *, streams: bool, requests: int) -> tuple[float, float]:
    """Microseconds a request: of this thread, and of the process."""
    request = chat(SECRET, stream=streams)
    clients = [_Client(gate(), request, ends=not streams) for _ in range(CONNECTIONS)]
    await _round(clients, max(1, int(WARM_UP * requests)))
    rounds = [await _round(clients, requests) for _ in range(ROUNDS)]
    thread, process = (min(one) / requests * 1e6 for one in zip(*rounds, strict=True))
    for client in clients:
        client.abort()
    return thread, process


async def _round(clients: Sequence[_Client], requests: int) -> tuple[float, float]:
    """Seconds of CPU for so many requests, shared out among the clients: of this thread, and of the process."""
    share, more = divmod(requests, len(clients))
    shares = [share + (at < more) for at in range(len(clients))]
    thread, process = time.thread_time(), time.process_time()
    await asyncio.gather(*map(_Client.ask, clients, shares))
    return time.thread_time() - thread, time.process_time() - process


class _End(asyncio.Transport):
    """What a connection of the router's writes to; it is always ready."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self.protocol = protocol
        self._closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in {"peername", "sockname"} else default

    def is_closing(self) -> bool:
        return self._closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        raise AssertionError("nothing is larger than a buffer")

    def resume_reading(self) -> None:
        pass

    def abort(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.call_soon(self.protocol.connection_lost, None)

    close = abort


class _Provider(_End):
    """Answers each request with the same bytes."""

    def __init__(self, protocol: asyncio.Protocol, answer: bytes) -> None:
        super().__init__(protocol)
        self._answer = answer

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:  # noqa: ARG002 - asyncio's
        self._loop.call_soon(self.protocol.data_received, self._answer)


class _Client(_End):
    """Sends a request as soon as the one before it is answered."""

    def __init__(self, protocol: asyncio.Protocol, request: bytes, *, ends: bool) -> None:
        """``ends``: an answer is one write; else it is a stream, whose end is looked for."""
        super().__init__(protocol)
        self._request = request
        self._ends = ends
        self._left = 0
        self._done: asyncio.Future[None] = self._loop.create_future()
        protocol.connection_made(self)

    async def ask(self, requests: int) -> None:
        """Return when so many are answered. Raises RuntimeError for an answer that isn't good."""
        if requests:
            self._left, self._done = requests, self._loop.create_future()
            self._loop.call_soon(self.protocol.data_received, self._request)
            await self._done

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if data[:5] == b"HTTP/" and data[9:12] != b"200":
            self._done.set_exception(RuntimeError(bytes(data).decode()))
        elif self._ends or bytes(data[-5:]) == b"0\r\n\r\n":
            self._left -= 1
            if self._left:
                self._loop.call_soon(self.protocol.data_received, self._request)
            else:
                self._done.set_result(None)


def _answers(answer: bytes) -> Callable[..., Any]:
    """Instead of `Dialer.dial`."""

    async def dial(_: Dialer, make: Callable[[], Connection]) -> Connection:
        connection = make()
        connection.connection_made(_Provider(connection, answer))
        return connection

    return dial


if __name__ == "__main__":
    sys.exit(main())
