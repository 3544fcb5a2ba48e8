"""A node over its real socket: as a process, and inside this one where time must be short."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engines import link, node, protocol, starter
from engines.base import Delta, Finish, GenerateRequest, Usage
from engines.node import BadOrdersError, Exit, Node, prepare, read_line, read_spec
from engines.specs import ExLlamaV2Spec, LlamaCppSpec, SimulatedSpec
from tests.engines.node_client import Connection, NodeProcess
from tests.engines.until import until

FAST = SimulatedSpec(ttft_ms=1, tokens_per_s=5000, prefill_tokens_per_s=1e6)
SLOW = SimulatedSpec(ttft_ms=1, tokens_per_s=200, slots=2)
HI = b'[{"role":"user","content":"hi"}]'


def generate(id_, **fields):
    return protocol.Generate(id_, GenerateRequest(**{"messages": HI} | fields))


async def answer(connection, id_):
    """All events of a request, or its failure."""
    events = []
    while not events or not isinstance(events[-1], Usage):
        message = await connection.next(protocol.Events, protocol.Failed)
        assert message is not None
        assert message.id == id_
        if isinstance(message, protocol.Failed):
            return message
        events += message.events
    return events


@pytest.fixture
async def spawn():
    """Start a node process and greet it."""
    nodes, connections = [], []

    async def spawn(spec=FAST, *, greet=True):
        process = NodeProcess(spec)
        await process.start()
        nodes.append(process)
        connections.append(await process.connect())
        if greet:
            process.info = await connections[-1].greet()
        return process, connections[-1]

    yield spawn
    for process in nodes:
        await process.stop()
    for connection in connections:
        await connection.close()


@asynccontextmanager
async def hosted(tmp_path, spec=FAST):
    """A node in this process: the node, its connection and the task whose result is its exit."""
    path = tmp_path / "n.sock"
    if len(str(path)) > node.MAX_PATH_BYTES:
        pytest.skip("the temporary folder's path is too long for a socket")
    inside = Node(spec)
    running = asyncio.create_task(inside.run(path))
    await until(path.exists)
    connection = Connection(*await asyncio.open_unix_connection(str(path)))
    try:
        yield inside, connection, running
    finally:
        inside.end(Exit.ORPHANED)
        await running
        await connection.close()


async def test_ready_generate_and_heartbeats(spawn):
    process, connection = await spawn()
    assert process.info.kind == "simulated"
    mode = stat.S_IMODE(process.path.stat().st_mode)
    assert mode == 0o600
    connection.send(generate(5, max_tokens=3))
    events = await answer(connection, 5)
    assert [type(event) for event in events] == [Delta] * 3 + [Finish, Usage]
    status = await connection.next(protocol.Status)
    assert status.health.iterations >= 3
    assert not status.draining


async def test_tokens_of_one_turn_come_in_one_frame(tmp_path):
    spec = SimulatedSpec(ttft_ms=0, tokens_per_s=1e9, prefill_tokens_per_s=1e9, slots=50)
    async with hosted(tmp_path, spec) as (_, connection, _):
        await connection.greet()
        connection.send(generate(1, n=50, max_tokens=1))
        frame = await connection.next(protocol.Events)
        assert len(frame.events) == 101


async def test_a_cancel_frees_the_slot(spawn):
    _, connection = await spawn(SLOW)
    connection.send(*(generate(id_, max_tokens=4000) for id_ in (1, 2, 3)))
    await connection.next(protocol.Events)
    connection.send(*map(protocol.Cancel, (1, 2, 3, 99)), generate(4, max_tokens=2))
    while (await connection.next(protocol.Events)).id != 4:
        pass
    status = await connection.next(protocol.Status)
    assert (status.health.running, status.health.waiting) == (0, 0)


async def test_two_routers_have_their_own_ids(tmp_path):
    async with hosted(tmp_path) as (_, one, _):
        path = one.writer.get_extra_info("peername")
        two = Connection(*await asyncio.open_unix_connection(path))
        for connection in (one, two):
            await connection.greet()
            connection.send(generate(1, max_tokens=2))
        assert len(await answer(one, 1)) == len(await answer(two, 1)) == 4
        await two.close()


async def test_a_lost_router_cancels_its_requests(tmp_path):
    async with hosted(tmp_path, SLOW) as (inside, connection, _):
        await connection.greet()
        connection.send(generate(1, max_tokens=4000))
        await connection.next(protocol.Events)
        assert inside.engine.health().running == 1
        await connection.close()
        await until(lambda: not inside.engine.health().running)


async def test_draining_finishes_what_runs_and_refuses_more(spawn):
    process, connection = await spawn(SLOW)
    connection.send(generate(1, max_tokens=20))
    await connection.next(protocol.Events)
    connection.send(protocol.Drain(), generate(2))
    refusal = await connection.next(protocol.Failed)
    assert (refusal.id, refusal.kind) == (2, "busy")
    assert isinstance((await answer(connection, 1))[-1], Usage)
    assert await connection.next(protocol.Events) is None
    assert await process.process.wait() == Exit.DRAINED
    assert not process.path.exists()


async def test_sigterm_drains_and_a_second_ends_at_once(spawn):
    process, connection = await spawn(SLOW)
    connection.send(generate(1, max_tokens=4000))
    await connection.next(protocol.Events)
    process.process.send_signal(signal.SIGTERM)
    while not (await connection.next(protocol.Status)).draining:
        pass
    process.process.send_signal(signal.SIGTERM)
    assert await process.process.wait() == Exit.AT_ONCE


@pytest.mark.parametrize("spec", [FAST, LlamaCppSpec(model="starter", threads=1)])
async def test_sigterm_ends_an_idle_node(spawn, spec):
    if isinstance(spec, LlamaCppSpec):  # it would take the signal for itself
        pytest.importorskip("xllamacpp")
        if not starter.gguf_path().exists():
            pytest.skip("the starter model is not there")
    process, connection = await spawn(spec)
    connection.send(generate(1, max_tokens=5))
    assert isinstance((await answer(connection, 1))[-1], Usage)
    process.process.send_signal(signal.SIGTERM)
    assert await process.process.wait() == Exit.DRAINED


async def test_a_parent_that_dies_takes_its_node_along(spawn):
    process, connection = await spawn(SLOW)
    connection.send(generate(1, max_tokens=4000))
    await connection.next(protocol.Events)
    assert await process.stop() == Exit.ORPHANED


async def test_a_killed_node_closes_its_connections(spawn):
    process, connection = await spawn(SLOW)
    connection.send(generate(1, max_tokens=4000))
    await connection.next(protocol.Events)
    process.process.kill()
    while await connection.next() is not None:
        pass
    assert await process.process.wait() == -signal.SIGKILL


async def test_a_simulated_death_is_a_real_one(spawn):
    process, connection = await spawn(SimulatedSpec(ttft_ms=1, tokens_per_s=1e4, faults={"die": 1}))
    connection.send(generate(1))
    while await connection.next() is not None:
        pass
    assert await process.process.wait() == 70


async def test_a_hang_shows_in_heartbeats(spawn):
    spec = SimulatedSpec(ttft_ms=1, tokens_per_s=1e4, faults={"hang": 1})
    _, connection = await spawn(spec)
    connection.send(generate(1))
    await connection.next(protocol.Events)
    await connection.next(protocol.Status)
    one, two = [await connection.next(protocol.Status) for _ in "12"]
    assert one == two
    assert one.health.running == 1


async def test_another_version_is_told_so(tmp_path):
    async with hosted(tmp_path) as (_, connection, _):
        connection.send(protocol.Hello(protocol.VERSION + 1))
        failed = await connection.next()
        assert failed.id == 0
        assert "version" in failed.message
        assert await connection.next() is None


@pytest.mark.parametrize(
    "data",
    [
        protocol.encode(protocol.Drain()),
        b"GET / HTTP/1.1\r\n\r\n",
        protocol.encode(protocol.Hello()) * 2,
        b"".join(map(protocol.encode, [protocol.Hello(), generate(1), generate(1)])),
        b"".join(map(protocol.encode, [protocol.Hello(), generate(0)])),
    ],
)
async def test_a_peer_that_breaks_the_rules_is_dismissed(tmp_path, data):
    async with hosted(tmp_path) as (inside, connection, _):
        await until(lambda: inside.info)
        connection.writer.write(data)
        failed = await connection.next(protocol.Failed)
        assert (failed.id, failed.kind) == (0, "invalid")
        assert await connection.next() is None


async def test_a_request_before_the_model_is_ready(tmp_path, monkeypatch):
    loaded = asyncio.Event()

    class Loading:
        async def start(self):
            await loaded.wait()

        def health(self):
            return node.Health()

        async def close(self):
            pass

    monkeypatch.setattr(node, "make", lambda _: Loading())
    async with hosted(tmp_path) as (_, connection, _):
        connection.send(protocol.Hello(), generate(1))
        assert isinstance(await connection.next(), protocol.Loading)
        failed = await connection.next(protocol.Failed)
        assert (failed.id, failed.kind) == (1, "busy")
        assert isinstance(await connection.next(), protocol.Loading)  # and again
        loaded.set()


async def test_an_engines_own_fault_is_reported(tmp_path, monkeypatch, caplog):
    async with hosted(tmp_path) as (inside, connection, _):
        await connection.greet()

        async def generate_badly(_):
            yield Delta(0, "a")
            raise ZeroDivisionError("oops")

        monkeypatch.setattr(inside.engine, "generate", generate_badly)
        connection.send(generate(1))
        assert (await connection.next(protocol.Events)).events == (Delta(0, "a"),)
        failed = await connection.next(protocol.Failed)
        assert (failed.kind, failed.message) == ("internal", "ZeroDivisionError: oops")
        assert "request 1" in caplog.text


async def test_a_router_that_does_not_read_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(link, "STUCK_S", 0.05)
    monkeypatch.setattr(link, "HIGH_WATER_BYTES", 1000)
    spec = SimulatedSpec(ttft_ms=0, tokens_per_s=1e6, batch_penalty=0, kv_tokens=10**7)
    async with hosted(tmp_path, spec) as (inside, greeted, _):
        await greeted.greet()
        path = greeted.writer.get_extra_info("peername")
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.setblocking(False)
            deaf.connect(path)
            requests = [generate(id_, n=20, max_tokens=2000) for id_ in range(1, 4)]
            deaf.send(b"".join(map(protocol.encode, [protocol.Hello(), *requests])))
            await until(lambda: len(inside._links) == 2)
            await until(lambda: len(inside._links) == 1)
        await until(lambda: not inside.engine.health().running)


async def test_without_routers_a_node_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(node, "ORPHAN_S", 0.1)
    monkeypatch.setattr(protocol, "STATUS_INTERVAL_S", 0.02)
    async with hosted(tmp_path) as (_, connection, running):
        await connection.greet()
        await asyncio.sleep(0.15)
        assert not running.done()
        await connection.close()
        assert await asyncio.wait_for(running, 1) is Exit.ORPHANED


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        (LlamaCppSpec(model="/nowhere/m.gguf"), "invalid", "there is no file /nowhere/m.gguf"),
        (ExLlamaV2Spec(model="m"), "unsupported", "the exllamav2 engine needs more"),
    ],
)
async def test_a_model_that_cannot_be_loaded(spawn, spec, kind, message):
    process, connection = await spawn(spec, greet=False)
    connection.send(protocol.Hello())
    failed = await connection.next(protocol.Failed)
    assert (failed.id, failed.kind) == (0, kind)
    assert failed.message.startswith(message)
    stderr = await process.process.stderr.read()
    assert stderr.decode() == f"engines.node: {failed.message}\n"
    assert await process.process.wait() == Exit.NO_MODEL


async def run(*arguments, line=b"{}\n"):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "engines.node", *arguments, cwd=Path(__file__).parents[2],
        stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, stderr = await process.communicate(line)
    return process.returncode, stderr.decode()


async def test_bad_orders_end_with_their_reason():
    code, stderr = await run("--socket", "/tmp/x.sock", line=b'{"kind":"zork"}\n')
    assert code == Exit.BAD_ORDERS
    assert stderr.startswith("engines.node: the first line of standard input is no spec: ")


def test_the_folder_must_be_private(tmp_path):
    prepare(tmp_path / "new" / "n.sock")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(BadOrdersError, match="is no socket"):
        prepare(tmp_path / "file")
    tmp_path.chmod(0o755)
    with pytest.raises(BadOrdersError, match="open to others"):
        prepare(tmp_path / "n.sock")
    with pytest.raises(BadOrdersError, match="over 100 bytes"):
        prepare(Path("/" + "x" * 200))


def test_only_the_first_line_is_the_spec():
    reading, writing = os.pipe()
    try:
        os.write(writing, b'{"kind":"simulated","seed":4}\nrest')
        assert read_spec(read_line(reading)) == SimulatedSpec(seed=4)
        assert os.read(reading, 10) == b"rest"
    finally:
        os.close(reading)
        os.close(writing)
    with pytest.raises(BadOrdersError):
        read_spec(b"")


async def test_a_node_starts_fast(spawn):
    since = time.monotonic()
    await spawn()
    assert time.monotonic() - since < 3  # imports nothing heavy before it is asked to
