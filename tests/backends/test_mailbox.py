"""Order, ends, limits, pressure."""

from __future__ import annotations

import asyncio

import pytest

from router.backends.mailbox import Alarm, Mailbox


@pytest.fixture
async def loop():
    return asyncio.get_running_loop()


async def test_everything_that_came_is_taken_at_once(loop):
    box = Mailbox(Alarm(loop))
    box.put(1)
    box.put(2)
    assert await box.take(loop.time() + 1) == [1, 2]
    loop.call_soon(box.put, 3)
    assert await box.take(loop.time() + 1) == [3]


async def test_an_end_comes_after_the_items_before_it(loop):
    box = Mailbox(Alarm(loop))
    box.put(1)
    box.end(ValueError("broken"))
    box.put(2)
    box.end()
    assert await box.take(loop.time() + 1) == [1]
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            await box.take(loop.time() + 1)


async def test_a_clean_end_is_an_empty_list(loop):
    box = Mailbox(Alarm(loop))
    loop.call_soon(box.end)
    assert await box.take(loop.time() + 1) == []


async def test_the_limit_is_the_waits_own_though_one_timer_serves_all(loop):
    box = Mailbox(Alarm(loop))
    start = loop.time()
    loop.call_later(0.01, box.put, 1)
    await box.take(start + 0.03)
    with pytest.raises(TimeoutError):
        await box.take(start + 0.06)
    assert loop.time() >= start + 0.06


async def test_a_shorter_limit_than_the_timers_is_kept(loop):
    box = Mailbox(Alarm(loop))
    loop.call_soon(box.put, 1)
    await box.take(loop.time() + 60)
    start = loop.time()
    with pytest.raises(TimeoutError):
        await box.take(start + 0.02)
    assert loop.time() - start < 1
    box.stop_timer()


async def test_pressure_is_reported_once_each_way(loop):
    calls = []

    class Pausing(Mailbox):
        def drained(self):
            calls.append("ok")

    box = Pausing(Alarm(loop), high_water=10, on_full=lambda: calls.append("full"))
    for _ in range(5):
        box.put(b"", 5)
    assert calls == ["full"]
    await box.take(loop.time() + 1)
    assert calls == ["full", "ok"]
    assert box.size == 0


async def test_a_cancelled_wait_loses_nothing(loop):
    box = Mailbox(Alarm(loop))
    task = asyncio.create_task(box.take(loop.time() + 60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    box.put(1)
    assert await box.take(loop.time() + 1) == [1]
    box.stop_timer()
