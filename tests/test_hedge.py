"""Hedging: a second provider is asked when the first is late, within a budget."""

from __future__ import annotations

import asyncio

import pytest

from router.errors import ApiError
from router.events import AttemptDone, Hedge, RequestDone
from router.load import FirstTokens
from router.policy.hedge_budget import MOST_TOKENS, HedgeBudget
from tests.stepping import everywhere
from tests.walks import Script, World, fault

BODY = b" " * 4000


class Gated(Script):
    """Opens when it is let."""

    def __init__(self, *acts):
        super().__init__(*acts)
        self.gate = asyncio.Event()

    async def open(self, order):
        await self.gate.wait()
        return await super().open(order)


def hedging(a, b, *, share=1.0, late_s=0.4):
    """A world whose a/m has had first tokens within ``late_s``; a is asked first."""
    world = World(a, b, hedge_share=share)
    for _ in range(FirstTokens.FEW):
        world.pool.targets["a/m"].load.first_tokens.saw(len(BODY) // 4, late_s)
    world.dispatcher._hedges.earn(10_000)
    return world


async def read(reply):
    pieces = []
    while piece := await reply.read():
        pieces.append(piece)
    return pieces


async def test_the_second_answers_where_the_first_is_silent():
    world = hedging(Gated([b"slow"]), Script([b"1", b"2"]))
    began = world.clock.now()
    reply = await world.dispatcher.open(world.call(BODY, stream=True))
    assert reply.target == "b/m"
    assert await read(reply) == [b"1", b"2"]
    world.assert_balanced()
    assert world.clock.now() - began == pytest.approx(0.4)
    assert world.seen(Hedge) == [Hedge("b/m", "won")]
    (done,) = world.seen(RequestDone)
    assert (done.target, done.attempts, done.outcome) == ("b/m", 2, "ok")
    assert [(event.target, event.fault) for event in world.seen(AttemptDone)] == [
        ("a/m", None), ("b/m", None),
    ]  # fmt: skip


async def test_the_first_may_still_win():
    slow, other = Gated([b"slow"]), Gated([b"never"])
    world = hedging(slow, other)
    asking = asyncio.ensure_future(world.dispatcher.open(world.call(BODY, stream=True)))
    for _ in range(5):
        await asyncio.sleep(0)
    slow.gate.set()
    reply = await asking
    assert await read(reply) == [b"slow"]
    world.assert_balanced()
    assert world.seen(Hedge) == [Hedge("b/m", "lost")]
    assert world.seen(RequestDone)[0].target == "a/m"


async def test_two_answers_at_the_same_moment_are_one():
    world = hedging(Gated([b"a", b"x"]), Gated([b"b", b"x"]))
    asking = asyncio.ensure_future(world.dispatcher.open(world.call(BODY, stream=True)))
    for _ in range(5):
        await asyncio.sleep(0)
    for script in world.scripts.values():
        script.gate.set()
    reply = await asking
    assert await read(reply) == [b"a", b"x"]
    world.assert_balanced()
    assert len(world.seen(RequestDone)) == 1


async def test_a_fault_of_one_is_mended_by_the_other_and_of_both_is_retried():
    slow = Gated(fault())
    world = hedging(slow, Script(fault(), [b"again"]))
    asking = asyncio.ensure_future(world.dispatcher.open(world.call(BODY, stream=True)))
    for _ in range(5):
        await asyncio.sleep(0)
    slow.gate.set()
    with pytest.raises(ApiError):  # three attempts in all: a, b, and one more
        await world.clock.run(asking)
    world.assert_balanced()
    assert world.seen(Hedge)[0] == Hedge("b/m", "failed")


async def test_whole_answers_unknown_sizes_and_empty_purses_are_not_hedged():
    for fields, share in (
        ({}, 1.0),
        ({"stream": True, "body": b"{}"}, 1.0),
        ({"stream": True}, 0.0),
    ):
        slow = Gated([b"slow"])
        world = hedging(slow, Script([b"b"]), share=share)
        asking = asyncio.ensure_future(
            world.dispatcher.open(world.call(**{"body": BODY, **fields}))
        )
        for _ in range(5):
            await asyncio.sleep(0)
        assert not asking.done()
        slow.gate.set()
        (await asking).close()
        assert world.seen(Hedge) == []


async def test_cancelled_at_every_step_of_a_race_nothing_leaks():
    for steps in range(12):
        world = hedging(Gated([b"slow"]), Script(fault(), [b"1", b"2"]))
        asking = asyncio.ensure_future(world.ask(body=BODY, stream=True))
        for _ in range(steps):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        world.assert_balanced()
        assert len(world.seen(RequestDone)) <= 1
        (done,) = world.seen(RequestDone) or [None]
        assert done is None or done.attempts == len(world.seen(AttemptDone))
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def test_cancelled_at_every_await_of_a_race_nothing_leaks():
    """Also in the moment in which the winner is known and the loser is being let go."""
    worlds = []

    def race():
        slow = Gated([b"slow"])
        worlds.append(hedging(slow, Script([b"1", b"2"])))
        asyncio.get_running_loop().call_later(0.01, slow.gate.set)
        return worlds[-1].ask(body=BODY, stream=True)

    async for where in everywhere(race):
        worlds[-1].assert_balanced()
        (done,) = worlds[-1].seen(RequestDone)
        assert done.attempts == len(worlds[-1].seen(AttemptDone)), where
    assert len(worlds) > 10


def test_the_budget_is_a_share_of_what_was_asked_for():
    budget = HedgeBudget(0.05)
    assert not budget.spend(1)
    for _ in range(100):
        budget.earn(1000)
    assert [budget.spend(1000) for _ in range(6)] == [True] * 5 + [False]
    for _ in range(10_000):
        budget.earn(1000)
    assert not budget.spend(MOST_TOKENS + 1)
    assert budget.spend(MOST_TOKENS)


def test_patience_is_a_quantile_by_size_of_the_prompt():
    seen = FirstTokens()
    for n in range(100):
        seen.saw(1000, n / 100)
    assert seen.quantile(900, 0.95) == pytest.approx(0.95, abs=0.01)
    assert seen.quantile(100_000, 0.95) is None
    assert seen.quantile(1000, 0.5) == pytest.approx(0.67, abs=0.01), "of the last 64"
