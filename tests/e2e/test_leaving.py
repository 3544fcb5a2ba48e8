"""Who leaves is cancelled everywhere, wherever in its walk the request is; over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import struct

import pytest

from router.app import Router, new_request_id
from router.backends.openai import OpenAIBackend
from router.config.reader import parse
from router.wire.chat import decode_chat
from tests import upstream as up
from tests.e2e.faulty import (
    KEYS,
    QUESTION,
    RULES,
    SECRET,
    TEXT,
    World,
    by_prefix,
    speaks,
    until,
    world,
)
from tests.e2e.judging import read, request
from tests.e2e.serving import PORTS, served_by
from tests.stepping import everywhere

PATIENT = RULES.replace("failures: 2", "failures: 1000000")
"""Nobody is ejected, so that every run takes the same way."""
BODY = {"model": "m", "messages": [QUESTION]}


def at_first(fault, then):
    """``fault`` for each request that wasn't seen before, then ``then``."""
    seen = set()

    async def answer(call):
        request_id = call.seen.headers["x-request-id"]
        known = request_id in seen
        seen.add(request_id)
        await (then if known else fault)(call)

    return answer


BUSY = up.status(429, headers={"retry-after-ms": "3"})
WAYS = {
    "at once": [speaks()],
    "in pieces": [speaks(pieces=up.at_random(1, 200))],
    "after a refusal and a wait": [at_first(BUSY, speaks())],
    "after a retry elsewhere": [up.status(500), speaks()],
    "after a retry of a kept connection": [at_first(up.hang_up(), speaks())],
    "broken off": [up.cut(2)],
    "continued elsewhere": [by_prefix(up.cut(2), up.status(500)), speaks()],
    "from a fallback": [up.status(500), speaks()],
}


async def ask(router, streaming):
    """One request of an embedder, its answer read to the end and closed."""
    body = json.dumps({**BODY, "stream": streaming}).encode()
    reply = await router.open(decode_chat(body), body, key_id="dev", request_id=new_request_id())
    try:
        pieces = b""
        while piece := await reply.read():
            pieces += piece
    finally:
        reply.close()
    assert pieces.endswith(up.DONE if streaming else b"}")


async def assert_nothing_left(w):
    """Beside the books: every connection that is open is an idle one, on both sides."""
    await w.assert_balanced()
    backends = w.served.router._backends.values()
    pools = [one._pool for one in backends if isinstance(one, OpenAIBackend) and one._pool]
    await until(lambda: all(len(pool._sockets) == pool.idle for pool in pools))
    idle = sum(pool.idle for pool in pools)
    await until(lambda: sum(one.open_connections for one in w.upstreams) == idle)


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("way", WAYS)
async def test_cancelled_at_every_await_of_the_walk_nothing_leaks(way, streaming):
    how = {}
    if way == "from a fallback":
        how = {"served": 1, "model": "fallback: [n]", "more": "  n: {targets: [{provider: b}]}\n"}
    async with world(*WAYS[way], rules=PATIENT, **how) as w:
        tasks = asyncio.all_tasks()
        outcomes = set()

        def run():
            w.asked += 1
            return ask(w.served.router, streaming)

        async for where in everywhere(run):
            await assert_nothing_left(w)
            outcomes.add(w.done[-1].outcome)
            assert len(w.done) == w.asked, where
        assert "client_gone" in outcomes
        assert len(w.done) >= 6
        await until(lambda: asyncio.all_tasks() <= tasks | {asyncio.current_task()} | serving())


def serving():
    """Tasks of the scripted upstreams that wait for their peer to go."""
    return {one for one in asyncio.all_tasks() if "upstream.py" in str(one.get_coro())}


# Clients of the server.


async def heads_only(call):
    await call.write(up.stream_head())
    await call.gone.wait()


STAGES = {
    "waiting for a rested target": (up.rate_limited("3"), b""),
    "waiting for the head": (up.silent(), b""),
    "waiting for the first piece": (heads_only, b""),
    "at the first piece": (up.stall(1), b"word0"),
    "in the middle": (up.stall(3), b"word2"),
    "at a retry": (up.flapping(up.status(500), up.silent()), b""),
}


async def leave(writer, how):
    if how == "RST":
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    if how == "half":
        writer.write_eof()
    else:
        writer.close()


async def connect(w):
    return await asyncio.open_connection("127.0.0.1", int(w.served.url.rpartition(":")[2]))


@pytest.mark.parametrize("how", ["FIN", "RST", "half"])
@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("stage", STAGES)
async def test_a_client_that_leaves_is_cancelled_at_every_stage(stage, streaming, how):
    """A client that closes only its own side has left, too: HTTP has no other sign of it."""
    fault, seen = STAGES[stage]
    async with world(fault, rules=PATIENT) as w:
        reader, writer = await connect(w)
        w.asked += 1
        writer.write(request({**BODY, "stream": streaming}, SECRET))
        await w.a.until_requests(2 if stage == "at a retry" else 1)
        if streaming and seen:
            await reader.readuntil(seen)
        await leave(writer, how)
        await until(lambda: w.done)
        assert w.done[0].outcome == "client_gone"
        if stage != "waiting for a rested target":
            await w.a.until_gone()
        await assert_nothing_left(w)
        assert w.state("a") == "admitting"
        writer.close()


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_a_client_that_leaves_while_the_provider_is_being_connected(how):
    """To a provider that accepts and never says a word of TLS."""
    gone = asyncio.Event()

    async def mute(reader, writer):
        while await reader.read(4096):
            pass
        gone.set()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = (
        f"providers: {{a: {{base_url: 'https://127.0.0.1:{port}/v1'}}}}\n"
        "models: {m: {targets: [{provider: a}]}}\n"
    )
    async with server, served_by(Router(parse(PORTS + KEYS + config, "test.yaml", {}))) as served:
        w = World([], served)
        w.asked += 1
        _, writer = await connect(w)
        writer.write(request(BODY, SECRET))
        await until(lambda: served.router.inflight)
        await leave(writer, how)
        await asyncio.wait_for(gone.wait(), 5)
        await until(lambda: w.done)
        assert w.done[0].outcome == "client_gone"
        await assert_nothing_left(w)


async def test_a_client_that_leaves_the_queue_for_a_connection():
    async with world(up.stall(2), rules=PATIENT, provider="max_connections: 1") as w:
        writers = []
        for _ in range(3):
            _, writer = await connect(w)
            w.asked += 1
            writer.write(request({**BODY, "stream": True}, SECRET))
            writers.append(writer)
        await until(lambda: w.served.router.inflight == 3)
        writers[1].close()
        await until(lambda: len(w.done) == 1)
        assert len(w.a.requests) == 1
        writers[0].close()
        await w.a.until_requests(2)
        writers[2].close()
        await w.a.until_gone(2)
        await until(lambda: len(w.done) == 3)
        assert {done.outcome for done in w.done} == {"client_gone"}


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
async def test_a_client_that_leaves_before_it_has_asked_asks_nothing(part):
    async with world(speaks()) as w:
        for how in ("FIN", "RST", "half"):
            _, writer = await connect(w)
            data = request(BODY, SECRET)
            writer.write(data[: int(part * len(data))])
            await writer.drain()
            await leave(writer, how)
            writer.close()
        got = await w.ask()
        assert got.text == TEXT
        assert len(w.a.requests) == 1


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_what_was_pipelined_by_a_client_that_leaves_is_never_asked(how):
    async with world(up.stall(1), rules=PATIENT) as w:
        reader, writer = await connect(w)
        w.asked += 1
        writer.write(request({**BODY, "stream": True}, SECRET) * 3)
        await reader.readuntil(b"word0")
        await leave(writer, how)
        await w.a.until_gone()
        await until(lambda: w.done)
        await assert_nothing_left(w)
        assert len(w.a.requests) == 1


async def test_an_http_1_0_client_hears_of_a_broken_stream():
    """Without chunks there is no unclean end: the event is all it gets."""
    async with world(up.cut(2), rules=PATIENT) as w:
        reader, writer = await connect(w)
        w.asked += 1
        data = request({**BODY, "stream": True}, SECRET)
        writer.write(data.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        got = await asyncio.wait_for(read(reader), 5)
        assert "transfer-encoding" not in got.headers
        assert (got.text, got.error["code"]) == ("word0 word1 ", "stream_cut")
        assert up.DONE not in got.body
        writer.close()


async def test_a_slow_reader_slows_its_upstream_and_nobody_else():
    """What waits for it stays small, all the way back to the provider."""
    sent = 0

    async def much(call):
        nonlocal sent
        if call.seen.json["messages"] != [QUESTION]:
            await speaks()(call)
            return
        await call.write(up.stream_head())
        event = up.chunked(up.event(up.chunk({"content": "x" * 30_000})))
        while not call.gone.is_set():
            await call.write(event)
            sent += len(event)

    async with world(much, rules=PATIENT) as w:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        address = ("127.0.0.1", int(w.served.url.rpartition(":")[2]))
        await loop.sock_connect(sock, address)
        w.asked += 1
        await loop.sock_sendall(sock, request({**BODY, "stream": True}, SECRET))
        await w.a.until_requests()
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.05)
        assert sent < 32 * 2**20, "the sockets' own buffers, and a little"
        got = await w.ask(True, messages=[{"role": "user", "content": "something else"}])
        assert got.text == TEXT
        assert sent == before
        sock.close()
        await w.a.until_gone()
        await until(lambda: len(w.done) == 2)
        assert w.done[-1].outcome == "client_gone"
