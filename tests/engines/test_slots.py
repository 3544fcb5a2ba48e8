from __future__ import annotations

import asyncio

import pytest

from engines.slots import Slots


async def line(slots, *counts):
    tasks = [asyncio.create_task(slots.acquire(count)) for count in counts]
    await asyncio.sleep(0)
    return tasks


async def test_free_permits_are_taken_at_once():
    slots = Slots(3)
    await slots.acquire(2)
    assert (slots.free, slots.waiting) == (1, 0)


async def test_the_line_is_served_in_order_and_nobody_overtakes():
    slots = Slots(3)
    await slots.acquire(2)
    big, small = await line(slots, 3, 1)
    assert slots.waiting == 2  # the small one would fit
    slots.release(2)
    await big
    assert slots.waiting == 1
    slots.release(3)
    await small
    assert (slots.free, slots.waiting) == (2, 0)


async def test_a_cancelled_wait_takes_nothing_and_lets_the_next_go():
    slots = Slots(2)
    await slots.acquire(1)
    big, small = await line(slots, 2, 1)
    big.cancel()
    with pytest.raises(asyncio.CancelledError):
        await big
    await small
    assert (slots.free, slots.waiting) == (0, 0)


async def test_a_wait_cancelled_as_its_turn_comes_gives_back():
    slots = Slots(1)
    await slots.acquire(1)
    (task,) = await line(slots, 1)
    slots.release(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slots.free == 1


async def test_failing_ends_every_wait():
    slots = Slots(1)
    await slots.acquire(1)
    tasks = await line(slots, 1, 1)
    slots.fail(RuntimeError("over"))
    for task in tasks:
        with pytest.raises(RuntimeError, match="over"):
            await task
    assert slots.waiting == 0
