"""A stream that is poured into a sink is the stream that is read: its bytes, its faults, its end."""

from __future__ import annotations

import asyncio

import pytest

from router.backends.base import Limits
from router.errors import Fault, FaultKind
from tests import upstream as up
from tests.backends.orders import backend, order, read_all
from tests.upstream import Upstream

QUICK = Limits(connect_s=1, first_token_s=0.1, idle_s=0.1)


class Told:
    """What an answer gave, in its order."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.poured = 0


async def pour_all(answer, *, takes: int | None = None) -> Told:
    """All of an answer; the sink says stop after every ``takes`` pieces."""
    told = Told()

    def sink(piece: bytes) -> bool:
        told.pieces.append(piece)
        told.poured += 1
        return takes is None or told.poured % takes != 0

    try:
        while piece := await answer.read():
            told.pieces.append(piece)
            await answer.pour(sink)
    finally:
        answer.close()
    return told


@pytest.mark.parametrize("takes", [None, 1, 2])
@pytest.mark.parametrize("pieces", [None, up.by_byte, up.at_random(3)])
async def test_every_byte_comes_once(takes, pieces):
    async with Upstream(up.stream(6, usage="chunk", pieces=pieces)) as upstream:
        target = backend(upstream)
        answer = await target.open(order(stream=True))
        told = await pour_all(answer, takes=takes)
        assert b"".join(told.pieces) == b"".join(up.events(6))
        assert answer.facts.finished
        assert answer.facts.output_tokens == 3
        await target.close()
        assert target.in_use == 0


async def test_pieces_are_poured_as_they_come_and_the_task_is_left_alone():
    gate = asyncio.Semaphore(0)
    events = up.events(4)
    async with Upstream(up.stream(4, gate=gate)) as upstream:
        target = backend(upstream)
        gate.release()
        answer = await target.open(order(stream=True))
        assert await answer.read() == events[0]
        poured: asyncio.Queue[bytes] = asyncio.Queue()
        task = asyncio.create_task(answer.pour(lambda piece: poured.put_nowait(piece) is None))
        for event in events[1:]:
            assert not task.done()
            gate.release()
            assert await poured.get() == event
        await task
        assert not answer.facts.finished  # who reads hears the end
        assert await answer.read() == b""
        assert answer.facts.finished
        answer.close()
        await target.close()


@pytest.mark.parametrize(
    "script",
    [
        up.cut(3),
        up.cut(3, rst=True),
        up.stall(3),
        up.stall(3, heartbeat_s=0.01),
        up.malformed(3),
        up.error_event(3),
        up.no_done(3),
        up.no_done(3, finish=None),
    ],
)
async def test_faults_are_those_of_reading(script):
    kinds, texts = [], []
    async with Upstream(script, script) as upstream:
        target = backend(upstream)
        for read in (read_all, pour_all):
            answer = await target.open(order(stream=True, limits=QUICK))
            try:
                said = await read(answer)
                texts.append(said if isinstance(said, bytes) else b"".join(said.pieces))
                kinds.append(None)
            except Fault as fault:
                kinds.append(fault.kind)
            assert target.in_use == 0
        await target.close()
    assert kinds[0] == kinds[1]
    assert len(set(texts)) <= 1


async def test_each_poured_piece_puts_the_silence_off():
    gate = asyncio.Semaphore(0)
    async with Upstream(up.stream(8, gate=gate)) as upstream:
        target = backend(upstream)
        gate.release()
        answer = await target.open(order(stream=True, limits=QUICK))
        task = asyncio.create_task(pour_all(answer))
        for _ in range(12):  # longer together than one silence may be
            await asyncio.sleep(QUICK.idle_s / 4)
            gate.release()
        told = await task
        assert b"".join(told.pieces) == b"".join(up.events(8))
        assert told.poured > 1
        await target.close()


async def test_a_cancelled_pour_leaves_the_answer_as_it_was():
    gate = asyncio.Semaphore(0)
    events = up.events(3)
    async with Upstream(up.stream(3, gate=gate)) as upstream:
        target = backend(upstream)
        gate.release()
        answer = await target.open(order(stream=True))
        await answer.read()
        task = asyncio.create_task(answer.pour(lambda _: pytest.fail("nobody pours any more")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.release()
        assert await answer.read() == events[1]
        answer.close()
        assert target.in_use == 0
        await target.close()


async def test_what_a_full_sink_leaves_holds_the_network_back():
    async with Upstream(up.stream(20_000)) as upstream:
        target = backend(upstream)
        answer = await target.open(order(stream=True))
        await answer.read()
        await answer.pour(lambda _: False)
        mailbox = answer.exchange
        for _ in range(50):
            await asyncio.sleep(0.002)
        assert mailbox.size <= 2 * mailbox.high_water
        assert not mailbox.closed
        answer.close()
        assert target.in_use == 0
        await target.close()


async def test_a_whole_answer_is_read():
    async with Upstream(up.json_answer()) as upstream:
        target = backend(upstream)
        answer = await target.open(order())
        await answer.pour(lambda _: pytest.fail("poured"))
        assert await read_all(answer) == up.completion()
        await target.close()


async def test_the_requests_deadline_ends_a_pour():
    async with Upstream(up.stall(2)) as upstream:
        target = backend(upstream)
        answer = await target.open(order(stream=True, wait_s=0.1))
        with pytest.raises(Fault) as raised:
            await pour_all(answer)
        assert raised.value.kind is FaultKind.DEADLINE
        await target.close()
