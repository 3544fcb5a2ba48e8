"""What waits for the end of a turn of the loop: it is written in order, before anything that follows, and once."""

import asyncio
import logging

from router.ending import Ending
from tests.server.fake_router import (
    ANSWER,
    STREAM_BODY,
    connect,
    read_answer,
    request,
    running,
    until,
)

EVENTS = b'data: {"n":1}\n\ndata: [DONE]\n\n'


async def test_writes_come_before_the_rest_and_each_once():
    ending, done = Ending(), []
    ending.later(lambda: done.append("books"))
    ending.write(lambda: done.append("one"))
    ending.write(lambda: done.append("two"))
    assert not done, "nothing is done within the turn"
    await asyncio.sleep(0)
    assert done == ["one", "two", "books"]
    await asyncio.sleep(0.01)
    assert len(done) == 3
    ending.write(lambda: done.append("three"))
    await asyncio.sleep(0)
    assert done[3:] == ["three"], "the next turn has an end, too"


async def test_what_is_asked_for_at_the_end_is_done_at_the_next_one():
    ending, done = Ending(), []
    ending.later(lambda: ending.write(lambda: done.append("late")))
    await asyncio.sleep(0)
    assert not done
    await asyncio.sleep(0)
    assert done == ["late"]


async def test_one_that_raises_costs_the_others_nothing(caplog):
    ending, done = Ending(), []
    ending.write(lambda: 1 / 0)
    ending.write(lambda: done.append("next"))
    with caplog.at_level(logging.ERROR):
        await asyncio.sleep(0)
    assert done == ["next"]
    assert "ZeroDivisionError" in caplog.text


async def test_an_error_behind_a_held_answer_does_not_overtake_it():
    go = asyncio.Event()
    async with running() as server:
        server.router.script = [go, ANSWER]
        reader, writer = await connect(server.url)
        writer.write(request())
        await until(lambda: server.router.replies)
        writer.write(b"no HTTP\r\n\r\n")
        await asyncio.sleep(0.01)
        go.set()
        statuses = [(await asyncio.wait_for(read_answer(reader), 2)).status for _ in range(2)]
        assert statuses == [200, 400]
        writer.close()


async def test_a_stream_behind_a_whole_answer_comes_behind_it():
    async with running() as server:
        server.router.script = [EVENTS]
        reader, writer = await connect(server.url)
        writer.write(request() + request(STREAM_BODY) + request())
        answers = [await asyncio.wait_for(read_answer(reader), 2) for _ in range(3)]
        assert [answer.body for answer in answers] == [EVENTS] * 3
        kinds = [answer.headers["content-type"].partition(";")[0] for answer in answers]
        assert kinds == ["application/json", "text/event-stream", "application/json"]
        writer.close()


async def test_an_answer_that_is_held_goes_out_before_its_connection_closes():
    async with running() as server:
        reader, writer = await connect(server.url)
        writer.write(request() + request(headers="connection: close\r\n"))
        first = await asyncio.wait_for(read_answer(reader), 2)
        last = await asyncio.wait_for(read_answer(reader), 2)
        assert (first.status, first.closed, last.status, last.closed) == (200, False, 200, True)
        assert await reader.read() == b""
        assert all(reply.closed.is_set() for reply in server.router.replies)
        writer.close()
