"""The walk: retries, waits, settles; cancelled at every await it leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc

import pytest

from router.config.schema import Health
from router.dispatch import Call, Reply
from router.dispatch.walk import Attempt, Walk
from router.errors import ApiError, FaultKind, invalid_request
from router.events import AttemptDone, RequestDone, RetryRefused, TargetState
from router.events import Retry as Retried
from router.target import Lease
from router.wire.chat import ChatRequest
from tests.walks import Script, World, fault


async def test_an_answer_is_relayed_whole_and_settled_once():
    world = World(Script([b"1", b"2", b"3"]))
    assert await world.ask() == [b"1", b"2", b"3"]
    world.assert_balanced()
    (done,) = world.seen(RequestDone)
    assert (done.outcome, done.status, done.attempts, done.target, done.output_tokens) == (
        "ok",
        200,
        1,
        "a/m",
        7,
    )
    assert [event.fault for event in world.seen(AttemptDone)] == [None]


async def test_a_failure_before_the_first_piece_goes_to_another_target():
    world = World(Script(fault()), Script([b"ok"]))
    assert await world.ask() == [b"ok"]
    world.assert_balanced()
    assert [event.target for event in world.seen(Retried)] == ["a/m"]
    assert world.seen(RequestDone)[0].attempts == 2
    assert world.clock.timers == 0


async def test_a_failure_between_head_and_first_piece_too():
    world = World(Script([fault(FaultKind.CUT)]), Script([b"ok"]))
    assert await world.ask() == [b"ok"]
    world.assert_balanced()


async def test_an_answer_that_ends_before_it_began_is_a_cut():
    world = World(Script([]), Script([b"ok"]))
    assert await world.ask() == [b"ok"]
    assert [event.fault for event in world.seen(AttemptDone)] == [FaultKind.CUT, None]


async def test_one_500_from_the_only_target_is_retried_there_after_a_pause():
    world = World(Script(fault(), [b"ok"]))
    began = world.clock.now()
    assert await world.clock.run(world.ask()) == [b"ok"]
    assert 0 < world.clock.now() - began <= 0.1
    assert world.clock.timers == 0
    assert world.seen(RequestDone)[0].overhead_s == 0


async def test_attempts_end_with_the_last_faults_error():
    world = World(Script(fault()), Script(fault()), Script(fault(FaultKind.TIMEOUT_FIRST_BYTE)))
    with pytest.raises(ApiError) as caught:
        await world.ask()
    assert (caught.value.status, caught.value.error.code) == (504, "first_token_timeout")
    world.assert_balanced()
    (done,) = world.seen(RequestDone)
    assert (done.outcome, done.attempts) == ("first_token_timeout", 3)


async def test_the_clients_own_mistake_is_passed_on_and_blames_nobody():
    answer = invalid_request("too long", param="messages", code="context_length_exceeded")
    world = World(Script(fault(FaultKind.CLIENT_ERROR, answer=answer)), Script([b"ok"]))
    for _ in range(4):
        with pytest.raises(ApiError) as caught:
            await world.ask()
        assert caught.value is answer
        await world.ask()
    assert world.pool.targets["a/m"].state == "admitting"
    world.assert_balanced()


async def test_failures_in_a_row_eject_and_it_is_said():
    world = World(Script(fault()), Script([b"ok"]))
    for _ in range(6):
        assert await world.ask() == [b"ok"]
    assert world.pool.targets["a/m"].state == "ejected"
    assert [(e.target, e.state, e.reason) for e in world.seen(TargetState)] == [
        ("a/m", "ejected", "server_error")
    ]
    assert len(world.seen(Retried)) == 2


async def test_429_with_retry_after_leaves_the_target_alone_until_then():
    limited = fault(FaultKind.RATE_LIMITED, retry_after_s=20)
    world = World(Script(limited, [b"a"]), Script([b"b"]))
    answers = [(await world.ask())[0] for _ in range(4)]
    assert answers == [b"b"] * 4
    world.clock.advance(20)
    assert {(await world.ask())[0] for _ in range(2)} == {b"a", b"b"}
    assert world.pool.targets["a/m"].state == "admitting"


async def test_429_without_retry_after_counts_in_the_rate_only():
    health = Health(failures=2, min_requests=10, eject_s=30)
    world = World(Script(fault(FaultKind.RATE_LIMITED)), Script([b"ok"]), health=health)
    for _ in range(9):
        assert await world.ask() == [b"ok"]
    assert world.pool.targets["a/m"].state == "admitting"
    for _ in range(3):
        assert await world.ask() == [b"ok"]
    assert [(e.target, e.state, e.reason) for e in world.seen(TargetState)] == [
        ("a/m", "ejected", "rate_limited")
    ]


async def test_429_with_retry_after_never_ejects():
    health = Health(failures=2, min_requests=5, eject_s=30)
    limited = fault(FaultKind.RATE_LIMITED, retry_after_s=1)
    world = World(Script(limited), Script([b"ok"]), health=health)
    for _ in range(30):
        assert await world.ask() == [b"ok"]
        world.clock.advance(1)
    assert world.seen(TargetState) == []


async def test_the_routers_own_faults_blame_nobody_and_are_tried_elsewhere():
    world = World(Script(fault(FaultKind.LOCAL)), Script([b"ok"]))
    for _ in range(30):
        assert await world.ask() == [b"ok"]
    assert world.pool.targets["a/m"].state == "admitting"
    alone = World(Script(fault(FaultKind.LOCAL)))
    with pytest.raises(ApiError) as caught:
        await alone.clock.run(alone.ask())
    assert (caught.value.status, caught.value.error.code) == (503, "router_fault")


async def test_beyond_the_budget_a_failure_is_the_clients_at_once():
    health = Health(failures=1000, min_success=0)
    scripts = [Script(fault()) for _ in "abc"]
    world = World(*scripts, health=health, budget_per_s=1, budget_share=0.2)
    for _ in range(100):
        with pytest.raises(ApiError) as caught:
            await world.ask()
        assert (caught.value.status, caught.value.error.code) == (502, "server_error")
    world.assert_balanced()
    assert 10 + 0.2 * 90 <= len(world.seen(Retried)) <= 10 + 0.2 * 100
    refused = world.seen(RetryRefused)
    assert (refused[0].model, refused[0].reason) == ("m", FaultKind.SERVER_ERROR)
    assert len(refused) + len(world.seen(Retried)) == len(world.seen(AttemptDone)) - sum(
        event.attempts == 3 for event in world.seen(RequestDone)
    )
    world.clock.advance(100)
    before = len(world.seen(Retried))
    with pytest.raises(ApiError):
        await world.ask()
    assert len(world.seen(Retried)) == before + 2


async def test_429_from_all_waits_where_the_deadline_allows():
    world = World(Script(fault(FaultKind.RATE_LIMITED, retry_after_s=20), [b"ok"]))
    began = world.clock.now()
    assert await world.clock.run(world.ask()) == [b"ok"]
    assert world.clock.now() - began == 20


async def test_429_beyond_the_deadline_is_the_clients_with_its_retry_after():
    world = World(Script(fault(FaultKind.RATE_LIMITED, retry_after_s=90)))
    with pytest.raises(ApiError) as caught:
        await world.ask()
    assert caught.value.status == 429
    assert caught.value.headers["retry-after"] == "90"
    with pytest.raises(ApiError) as caught:
        await world.ask()
    assert (caught.value.status, caught.value.headers["retry-after"]) == (429, "90")
    assert world.seen(RequestDone)[1].attempts == 0


async def test_nobody_up_is_503_at_once():
    world = World(Script([b"ok"]))
    world.pool.targets["a/m"].available = False
    with pytest.raises(ApiError) as caught:
        await world.ask()
    assert (caught.value.status, caught.value.error.code) == (503, "model_unavailable")
    assert caught.value.headers["retry-after"] == "1"


async def test_a_break_after_the_first_piece_is_an_explicit_error():
    world = World(Script([b"1", b"2", fault(FaultKind.CUT)]), Script([b"never"]))
    reply = await world.dispatcher.open(world.call(stream=True))
    assert [await reply.read(), await reply.read()] == [b"1", b"2"]
    with pytest.raises(ApiError) as caught:
        await reply.read()
    assert caught.value.error.code == "stream_cut"
    assert await reply.read() == b""
    reply.close()
    world.assert_balanced()
    assert world.scripts["b"].opened == 0
    assert world.seen(RequestDone)[0].outcome == "stream_cut"


async def test_a_client_that_leaves_closes_the_answer_and_blames_nobody():
    world = World(Script([b"1", b"2"]))
    for _ in range(5):
        reply = await world.dispatcher.open(world.call(stream=True))
        await reply.read()
        reply.close()
        reply.close()
    world.assert_balanced()
    assert {event.outcome for event in world.seen(RequestDone)} == {"client_gone"}
    assert len(world.seen(RequestDone)) == 5
    assert world.pool.targets["a/m"].state == "admitting"


async def test_an_answer_in_hand_counts_as_given_though_nobody_read_its_end():
    world = World(Script([b"{}"]))
    reply = await world.dispatcher.open(world.call())
    assert await reply.read() == b"{}"
    reply.close()
    assert world.seen(RequestDone)[0].outcome == "ok"


async def test_three_hundred_at_once_spread_evenly_and_leave_nothing():
    world = World(*(Script([b"1", b"2"]) for _ in range(3)))
    await asyncio.gather(*(world.ask() for _ in range(300)))
    assert [script.opened for script in world.scripts.values()] == [100, 100, 100]
    world.assert_balanced()


def suspend_then_cancel(coroutine, steps):
    """Run a coroutine for so many suspensions, then cancel it there; true if it was still running."""
    for _ in range(steps):
        try:
            coroutine.send(None)
        except StopIteration:
            return False
    try:
        coroutine.throw(asyncio.CancelledError())
    except (asyncio.CancelledError, StopIteration):
        return True
    raise AssertionError("cancellation was swallowed")


def test_cancelled_at_every_await_nothing_leaks():
    outcomes = []
    running = True
    while running:
        world = World(Script(fault()), Script([fault(FaultKind.CUT)]), Script([b"1", b"2", b"3"]))
        running = suspend_then_cancel(world.ask(), len(outcomes) + 1)
        world.assert_balanced()
        (done,) = world.seen(RequestDone)
        assert len(world.seen(AttemptDone)) == done.attempts
        outcomes.append(done.outcome)
    assert outcomes.count("client_gone") >= 6, "the walk has at least that many awaits"
    assert outcomes == sorted(outcomes), (
        "once the last piece is in hand, the answer counts as given"
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_leaves_nothing_to_the_garbage_collector(stream):
    """What a request was made of goes when it is over: collecting it costs every request some of its time."""
    world = World(Script([b"{}"]))
    await world.ask(stream=stream)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            await world.ask(stream=stream)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = {type(one) for one in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left & {Walk, Attempt, Lease, Reply, Call, ChatRequest}
