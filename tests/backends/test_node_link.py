"""A node's link over a real Unix socket, against a node that says what the test wants."""

import asyncio
import math
import tempfile
from pathlib import Path

import msgspec
import pytest
import uvloop

from engines.base import Delta, EngineError, EngineInfo, Finish, GenerateRequest, Health, Usage
from engines.protocol import (
    VERSION,
    Cancel,
    Drain,
    Events,
    Failed,
    FrameDecoder,
    Generate,
    Hello,
    Loading,
    Ready,
    Status,
    ToNode,
    encode,
)
from router.backends import node_link
from router.backends.base import Limits, Order
from router.backends.engine import EngineBackend
from router.backends.node_link import Listeners, NodeLink
from router.errors import Fault, FaultKind
from router.wire import sse
from router.wire.chat import decode_chat

INFO = EngineInfo("fake", "m", 100, 2, 1000)
ASK = GenerateRequest(messages=b"[]")
HELLO = (Delta(0, "Hé"), Delta(0, "llo"), Finish(0, "stop"), Usage(5, 2))
GREETING = (Loading(0.5), Ready(VERSION, INFO))


class FakeNode:
    """Listens, records what it is sent, and says what it is told to say."""

    def __init__(self, *, greet=GREETING, segment=None):
        self.folder = tempfile.TemporaryDirectory(prefix="nenya-")
        self.path = str(Path(self.folder.name) / "s")
        self.heard = []
        self.greet = greet
        self.segment = segment
        self.answer = lambda _generate: ()
        self.transport = None
        self.came = asyncio.Event()
        self.gone = asyncio.Event()

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self.server = await loop.create_unix_server(lambda: _Peer(self), self.path)
        return self

    async def __aexit__(self, *_):
        for _ in range(5):  # a connection that is being accepted
            await asyncio.sleep(0)
        self.server.close()
        if self.transport is not None:
            self.transport.abort()
            await self.gone.wait()
        await self.server.wait_closed()
        self.folder.cleanup()

    def say(self, *messages):
        self.write(b"".join(encode(message) for message in messages))

    def write(self, data: bytes):
        if self.segment is None:
            self.transport.write(data)
        else:
            self.pieces = asyncio.create_task(self._dribble(data))

    async def _dribble(self, data: bytes):
        for at in range(0, len(data), self.segment):
            self.transport.write(data[at : at + self.segment])
            await asyncio.sleep(0)

    async def hears(self, kind, count=1):
        async with asyncio.timeout(2):
            while sum(isinstance(message, kind) for message in self.heard) < count:
                self.came.clear()
                await self.came.wait()
        return [message for message in self.heard if isinstance(message, kind)]


class _Peer(asyncio.Protocol):
    def __init__(self, node):
        self.node = node
        self.decoder = FrameDecoder(ToNode)

    def connection_made(self, transport):
        self.node.transport = transport

    def connection_lost(self, exc):
        self.node.gone.set()

    def data_received(self, data):
        for message in self.decoder.feed(data):
            self.node.heard.append(message)
            self.node.came.set()
            if isinstance(message, Hello):
                self.node.say(*self.node.greet)
            elif isinstance(message, Generate):
                self.node.say(*self.node.answer(message))


class Linked:
    """A fake node and a link to it."""

    def __init__(self, listeners=None, **node):
        self.node = FakeNode(**node)
        self.listeners = listeners

    async def __aenter__(self):
        await self.node.__aenter__()
        self.link = NodeLink(self.node.path, self.listeners)
        assert await self.link.start() == INFO
        return self.node, self.link

    async def __aexit__(self, *_):
        assert self.link.open_requests == 0
        await self.link.close()
        await self.node.__aexit__()


async def collect(link):
    return [event async for event in link.generate(ASK)]


async def engine_error(awaitable) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await awaitable
    return caught.value


@pytest.mark.parametrize("segment", [None, 1, 7])
async def test_events_come_whole_however_they_are_cut(segment):
    loading = []
    async with Linked(Listeners(on_loading=loading.append), segment=segment) as (node, link):
        node.answer = lambda ask: (Events(ask.id, HELLO[:1]), Events(ask.id, HELLO[1:]))
        assert await collect(link) == list(HELLO)
        assert loading == [0.5]
        assert node.heard[0] == Hello()
        assert node.heard[1] == Generate(1, ASK)
        assert not any(isinstance(message, Cancel) for message in node.heard)


async def test_requests_are_told_apart():
    async with Linked() as (node, link):
        first, second = link.begin(ASK), link.begin(ASK)
        ids = [ask.id for ask in await node.hears(Generate, 2)]
        node.say(
            Events(ids[1], (Delta(0, "b"),)),
            Events(ids[0], (Delta(0, "a"),)),
            Failed(ids[1], "busy", "full"),
            Events(ids[0], HELLO[2:]),
        )
        assert await first.take(math.inf) == [Delta(0, "a"), *HELLO[2:]]
        assert await first.take(math.inf) == []
        assert await second.take(math.inf) == [Delta(0, "b")]
        assert (await engine_error(second.take(math.inf))).kind == "busy"


async def test_everything_that_came_is_taken_at_once():
    async with Linked() as (node, link):
        generation = link.begin(ASK)
        await node.hears(Generate)
        node.say(*(Events(1, (event,)) for event in HELLO))
        assert await generation.take(math.inf) == list(HELLO)


async def test_a_take_has_its_time():
    async with Linked() as (_, link):
        generation = link.begin(ASK)
        with pytest.raises(TimeoutError):
            await generation.take(asyncio.get_running_loop().time() + 0.01)
        generation.cancel()


async def test_health_is_the_last_heartbeat():
    heard = asyncio.Queue()
    async with Linked(Listeners(on_status=heard.put_nowait)) as (node, link):
        assert link.health() == Health()
        assert link.heard is None
        status = Status(Health(iterations=3, running=1))
        node.say(Status(Health()), status)
        assert [await heard.get(), await heard.get()] == [Status(Health()), status]
        assert link.health() == status.health
        assert link.heard.status == status
        assert abs(link.heard.at - asyncio.get_running_loop().time()) < 1


async def test_drain_is_passed_on():
    async with Linked() as (node, link):
        link.drain()
        await node.hears(Drain)


# Starting.


async def test_nobody_listens():
    link = NodeLink("/nowhere/s")
    assert (await engine_error(link.start())).kind == "died"
    await link.close()


async def test_a_request_before_the_link_is_up():
    with pytest.raises(EngineError, match="not ready"):
        NodeLink("/nowhere/s").begin(ASK)


@pytest.mark.parametrize(
    ("greet", "kind", "words"),
    [
        ((Ready(VERSION + 1, INFO),), "unsupported", f"version {VERSION + 1} of the protocol"),
        ((Loading(), Failed(0, "internal", "no such file")), "internal", "no such file"),
    ],
)
async def test_a_node_that_can_not_be_used(greet, kind, words):
    lost = []
    async with FakeNode(greet=greet) as node:
        link = NodeLink(node.path, Listeners(on_lost=lost.append))
        error = await engine_error(link.start())
        assert error.kind == kind
        assert words in error.message
        assert lost == [error]
        await node.gone.wait()


@pytest.mark.parametrize("turns", range(8))
async def test_cancelling_start_hangs_up(turns):
    async with FakeNode(greet=()) as node:
        link = NodeLink(node.path)
        task = asyncio.create_task(link.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if node.transport is not None:
            await node.gone.wait()


# Losing.


async def test_a_lost_connection_kills_every_request():
    order = []
    async with Linked(Listeners(on_lost=lambda error: order.append(error.kind))) as (node, link):
        generations = [link.begin(ASK) for _ in range(3)]
        await node.hears(Generate, 3)
        node.say(Events(1, HELLO[:1]))
        assert await generations[0].take(math.inf) == [HELLO[0]]
        node.transport.abort()
        for generation in generations:
            assert (await engine_error(generation.take(math.inf))).kind == "died"
        assert order == ["died"]
        with pytest.raises(EngineError, match="lost"):
            link.begin(ASK)
        link.drain()


@pytest.mark.parametrize("junk", [b"\xff\xff\xff\xffx", b"\0\0\0\1\xc1", encode(Hello())])
async def test_junk_ends_the_connection(junk):
    async with Linked() as (node, link):
        generation = link.begin(ASK)
        await node.hears(Generate)
        node.write(junk)
        error = await engine_error(generation.take(math.inf))
        assert error.kind == "died"
        assert "nonsense" in error.message
        await node.gone.wait()


async def test_closing_kills_requests_and_tells_nobody():
    lost = []
    async with Linked(Listeners(on_lost=lost.append)) as (_, link):
        generation = link.begin(ASK)
        await link.close()
        await link.close()
        assert (await engine_error(generation.take(math.inf))).kind == "died"
        assert lost == []


# Cancelling.


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("how", ["cancel", "aclose"])
async def test_cancelling_at_any_time_leaves_no_request(turns, how):
    async with Linked(segment=5) as (node, link):
        node.answer = lambda ask: (Events(ask.id, HELLO[:1]),)
        events = link.generate(ASK)
        if how == "cancel":
            task = asyncio.create_task(_drain(events))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            for _ in range(min(turns, 1)):
                await anext(events)
            await events.aclose()
        assert link.open_requests == 0
        asked = sum(isinstance(message, Generate) for message in node.heard)
        if asked:
            assert len(await node.hears(Cancel)) == asked


async def _drain(events):
    async for _ in events:
        pass


async def test_cancel_is_written_before_it_returns():
    async with Linked() as (_, link):
        generation = link.begin(ASK)
        written = []
        link._connection._write = written.append
        generation.cancel()
        assert written == [encode(Cancel(1))]
        generation.cancel()
        assert len(written) == 1


async def test_what_comes_late_is_dropped():
    async with Linked() as (node, link):
        first = link.begin(ASK)
        first.cancel()
        await node.hears(Cancel)
        node.say(Events(1, HELLO), Failed(1, "internal", "late"), Events(99, HELLO))
        node.answer = lambda ask: (Events(ask.id, HELLO),)
        assert await collect(link) == list(HELLO)


async def test_a_reader_that_does_not_read_is_cut_off():
    async with Linked() as (node, link):
        generation = link.begin(ASK)
        await node.hears(Generate)
        node.say(*[Events(1, (Delta(0, "x" * 1_000_000),))] * 6)
        await node.hears(Cancel)
        assert link.open_requests == 0
        assert len(await generation.take(math.inf)) == 5
        error = await engine_error(generation.take(math.inf))
        assert error.kind == "internal"


async def test_a_node_that_does_not_read_is_busy(monkeypatch):
    monkeypatch.setattr(node_link, "MAX_UNSENT_BYTES", 1_000_000)
    async with Linked() as (node, link):
        node.transport.pause_reading()
        large = GenerateRequest(messages=b"x" * 600_000)
        generations = []
        with pytest.raises(EngineError) as caught:
            generations.extend(link.begin(large) for _ in range(10))
        assert caught.value.kind == "busy"
        assert len(generations) > 1
        await link.close()
        for generation in generations:
            generation.cancel()


async def test_a_request_that_no_frame_holds_is_refused():
    async with Linked() as (_, link):
        with pytest.raises(EngineError, match="too large"):
            link.begin(GenerateRequest(messages=b"x" * (64 * 1024 * 1024)))


# As a backend.


def order(**fields):
    body = msgspec.json.encode(
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    )
    deadline = asyncio.get_running_loop().time() + 5
    return Order(decode_chat(body), body, "m", "req", deadline, Limits(1, 1, 1), 1)


@pytest.mark.parametrize("segment", [None, 1])
async def test_a_stream_through_a_link(segment):
    async with Linked(segment=segment) as (node, link):
        node.answer = lambda ask: [Events(ask.id, (event,)) for event in HELLO]
        answer = await EngineBackend("e", link).open(order(stream=True))
        blobs = []
        while blob := await answer.read():
            assert blob.endswith(b"\n\n")
            blobs.append(blob)
        assert b"".join(blobs).endswith(sse.DONE)
        assert answer.facts.output_tokens == 2


async def test_closing_an_answer_tells_the_node_in_the_same_turn():
    async with Linked() as (node, link):
        node.answer = lambda ask: (Events(ask.id, HELLO[:1]),)
        answer = await EngineBackend("e", link).open(order(stream=True))
        answer.close()
        assert link.open_requests == 0
        await node.hears(Cancel)


@pytest.mark.parametrize("turns", range(10))
async def test_cancelling_a_backend_at_any_time(turns):
    async with Linked(segment=3) as (node, link):
        node.answer = lambda ask: (Events(ask.id, HELLO[:2]),)
        backend = EngineBackend("e", link)
        task = asyncio.create_task(_ask(backend))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert link.open_requests == 0
        assert not backend._answers


async def _ask(backend):
    answer = await backend.open(order(stream=True))
    try:
        while await answer.read():
            pass
    finally:
        answer.close()


async def test_a_connection_lost_midway_is_a_fault():
    async with Linked() as (node, link):
        node.answer = lambda ask: (Events(ask.id, HELLO[:1]),)
        answer = await EngineBackend("e", link).open(order(stream=True))
        assert b"H\xc3\xa9" in await answer.read()
        node.transport.abort()
        with pytest.raises(Fault) as caught:
            await answer.read()
        assert caught.value.kind is FaultKind.ENGINE_DIED


def test_all_of_it_on_uvloop():
    async def walk():
        async with Linked(segment=2) as (node, link):
            node.answer = lambda ask: (Events(ask.id, HELLO),)
            assert await collect(link) == list(HELLO)
            node.answer = lambda ask: ()
            task = asyncio.create_task(collect(link))
            await node.hears(Generate, 2)
            task.cancel()
            await node.hears(Cancel)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(walk())
