"""A long body of known length is read where it stays, and leaves the connection as it found it."""

import asyncio
import hashlib
import json

import pytest
import uvloop

from router.server import long_body
from router.server.exchange import LONG_BODY_BYTES
from tests.server.fake_router import (
    ANSWER,
    BODY,
    FakeReply,
    ask,
    connect,
    read_answer,
    request,
    running,
    until,
)

SIZES = (
    LONG_BODY_BYTES,
    long_body.TURN_BYTES,
    long_body.TURN_BYTES + 1,
    5 * long_body.TURN_BYTES + 7,
)


def long(size: int) -> bytes:
    """A body of so many bytes, no two of its places alike."""
    start, end = b'{"model": "m", "messages": [{"role": "user", "content": "', b'"}]}'
    count = size - len(start) - len(end)
    text = "".join(f"{number} " for number in range(count // 2)).encode()[:count]
    return start + text + end


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def keeping(seen: list[str]):
    async def open_(_request, body):
        seen.append(digest(body))
        return FakeReply([ANSWER], streaming=False)

    return open_


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("first", [0, 100, 200_000, 10_000_000])
def test_it_comes_whole_and_the_next_request_behind_it(run, size, first):
    """``first`` bytes of it come with its head, the rest later together with the next requests."""
    seen: list[str] = []
    body = long(size)
    data = request(body)
    cut = len(data) - len(body) + first

    async def talk() -> None:
        async with running(keeping(seen)) as server:
            reader, writer = await connect(server.url)
            for _ in range(2):
                writer.write(data[:cut])
                await writer.drain()
                await asyncio.sleep(0.01)
                writer.write(data[cut:] + request(BODY) + request(BODY))
                for _ in range(3):
                    answer = await read_answer(reader)
                    assert (answer.status, answer.closed) == (200, False)
            writer.close()

    run(talk())
    assert seen == [digest(body), digest(BODY), digest(BODY)] * 2


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_it_comes_byte_by_byte_at_the_end(run):
    seen: list[str] = []
    body = long(LONG_BODY_BYTES + 50)

    async def talk() -> None:
        async with running(keeping(seen)) as server:
            reader, writer = await connect(server.url)
            data = request(body)
            writer.write(data[:-40])
            for at in range(len(data) - 40, len(data)):
                writer.write(data[at : at + 1])
                await asyncio.sleep(0.001)
            assert (await read_answer(reader)).status == 200
            writer.close()

    run(talk())
    assert seen == [digest(body)]


async def test_what_stalls_is_408_and_the_rest_is_read_and_dropped():
    body = long(3 * long_body.TURN_BYTES)
    data = request(body)
    async with running(body_timeout_s=0.2) as server:
        reader, writer = await connect(server.url)
        writer.write(data[: 2 * long_body.TURN_BYTES])
        answer = await asyncio.wait_for(read_answer(reader), 3)
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert answer.closed
        writer.write(data[2 * long_body.TURN_BYTES :])
        assert await asyncio.wait_for(reader.read(), 3) == b""  # at once: it doesn't linger
        writer.close()
        assert (await ask(server.url, request(body))).status == 200


async def test_a_client_that_leaves_in_the_middle_leaves_nothing():
    seen: list[str] = []
    data = request(long(3 * long_body.TURN_BYTES))
    async with running(keeping(seen)) as server:
        gate = server.serving._gates[0]
        for cut in (2000, 200_000, 2 * long_body.TURN_BYTES, len(data) - 1):
            _, writer = await connect(server.url)
            writer.write(data[:cut])
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.transport.abort()
        await until(lambda: not list(gate.connections), 3)
        assert not seen
        assert (await ask(server.url, data)).status == 200


async def test_the_server_goes_down_while_it_comes():
    async with running() as server:
        reader, writer = await connect(server.url)
        writer.write(request(long(3 * long_body.TURN_BYTES))[: 2 * long_body.TURN_BYTES])
        await writer.drain()
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(server.serving.stop(0))
        answer = await asyncio.wait_for(read_answer(reader), 3)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "shutting_down")
        writer.close()
        await stopping


async def test_memory_is_taken_as_it_comes(monkeypatch):
    taken: list[int] = []
    data = request(long(20 * long_body.TURN_BYTES))
    before = long_body.LongBody.more

    async def more(self):
        await before(self)
        taken.append(self._room)

    monkeypatch.setattr(long_body.LongBody, "more", more)
    async with running() as server:
        _, writer = await connect(server.url)
        writer.write(data[: 3 * long_body.TURN_BYTES])
        await until(lambda: len(taken) >= 2, 3)
        await asyncio.sleep(0.05)
        writer.close()
    assert max(taken) <= 4 * long_body.TURN_BYTES
