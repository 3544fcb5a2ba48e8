"""A stream that is mended: every attempt settled once, whatever happens while another is asked for the rest."""

from __future__ import annotations

import asyncio
import json

import pytest

from router.errors import ApiError, FaultKind, invalid_request
from router.events import AttemptDone, Recovery, RequestDone
from router.policy.breaker import Verdict
from tests.test_dispatch import Script, World, fault, suspend_then_cancel
from tests.upstream import DONE, chunk, event
from tests.walks import Pieces

ROLE = event(chunk({"role": "assistant", "content": ""}))
END = event(chunk({}, finish="stop")) + DONE
CUT = fault(FaultKind.CUT)


def says(*texts):
    return [event(chunk({"content": text})) for text in texts]


def text_of(pieces):
    """What a stream's pieces say; they end with [DONE]."""
    blob = b"".join(pieces)
    assert blob.endswith(DONE)
    assert blob.count(DONE) == 1
    chunks = [json.loads(one[6:]) for one in blob.split(b"\n\n")[:-2]]
    choices = [choice for one in chunks for choice in one["choices"]]
    assert [one["finish_reason"] for one in choices if one["finish_reason"]] == ["stop"]
    return "".join(one["delta"].get("content") or "" for one in choices)


async def mended(world, *, leave_after=None):
    """The stream's pieces, or as many as ``leave_after``."""
    reply = await world.dispatcher.open(world.call(stream=True))
    pieces = []
    try:
        while piece := await reply.read():
            pieces.append(piece)
            if len(pieces) == leave_after:
                break
    finally:
        reply.close()
    return pieces


def three(*, attempts=3):
    """One breaks in its middle, one in the middle of the rest, one ends it."""
    return World(
        Script([ROLE, *says("It", " is"), CUT]),
        Script([ROLE, *says(" a", " long"), CUT]),
        Script([ROLE, *says(" way", " home."), END]),
        attempts=attempts,
    )


def outcomes(world):
    return [(one.target, one.outcome) for one in world.seen(Recovery)]


async def test_each_attempt_is_settled_once_and_one_request_is_said():
    world = three()
    assert text_of(await mended(world)) == "It is a long way home."
    world.assert_balanced()
    faults = [one.fault for one in world.seen(AttemptDone)]
    assert faults == [FaultKind.CUT, FaultKind.CUT, None]
    (done,) = world.seen(RequestDone)
    assert (done.outcome, done.attempts, done.target) == ("ok", 3, "c/m")
    assert outcomes(world) == [("b/m", "continued"), ("c/m", "continued")]


async def test_what_was_poured_is_gone_on_from(monkeypatch):
    async def pour(self, sink, record):
        taken = True
        while taken and len(self.pieces) > 1:
            piece = await self.read()
            record.add(piece)
            taken = sink(piece)

    monkeypatch.setattr(Pieces, "pour", pour)
    world, pieces, poured = three(), [], []

    def sink(piece):
        poured.append(piece)
        pieces.append(piece)
        return True

    reply = await world.dispatcher.open(world.call(stream=True))
    while piece := await reply.read():
        pieces.append(piece)
        await reply.pour(sink)
    assert poured == says("It", " is")
    assert text_of(pieces) == "It is a long way home."
    assert outcomes(world) == [("b/m", "continued"), ("c/m", "continued")]
    world.assert_balanced()


async def test_attempts_end_where_they_do_for_retries():
    world = three(attempts=2)
    with pytest.raises(ApiError) as caught:
        await mended(world)
    assert caught.value.error.code == "stream_cut"
    world.assert_balanced()
    assert world.scripts["c"].opened == 0
    assert world.seen(RequestDone)[0].attempts == 2


def test_cancelled_at_every_await_nothing_leaks():
    running, steps, seen = True, 0, set()
    while running:
        world = three()
        steps += 1
        running = suspend_then_cancel(mended(world), steps)
        world.assert_balanced()
        (done,) = world.seen(RequestDone)
        assert len(world.seen(AttemptDone)) == done.attempts
        seen.add((done.attempts, done.outcome))
    assert {(1, "client_gone"), (2, "client_gone"), (3, "client_gone"), (3, "ok")} <= seen


@pytest.mark.parametrize("count", range(1, 8))
async def test_a_client_that_leaves_after_any_piece_leaves_nothing(count):
    world = three()
    await mended(world, leave_after=count)
    world.assert_balanced()
    assert len(world.seen(RequestDone)) == 1


@pytest.mark.parametrize("steps", range(1, 12))
async def test_closed_while_the_rest_is_asked_for(steps):
    world = three()
    reply = await world.dispatcher.open(world.call(stream=True))

    async def drain():
        while await reply.read():
            pass

    task = asyncio.create_task(drain())
    for _ in range(steps):
        await asyncio.sleep(0)
    reply.close()
    await asyncio.gather(task, return_exceptions=True)
    world.assert_balanced()
    (done,) = world.seen(RequestDone)
    assert len(world.seen(AttemptDone)) == done.attempts


async def test_a_refusal_is_learned_and_blames_nobody():
    refusal = fault(FaultKind.CLIENT_ERROR)
    refusal.answer = invalid_request("no prefix, please")
    world = World(Script([ROLE, *says("It"), CUT]), Script(refusal), Script([*says(" is."), END]))
    assert text_of(await mended(world)) == "It is."
    target = world.pool.targets["b/m"]
    assert target.state == "admitting"
    assert not target.may_continue(world.clock.now())
    world.clock.advance(601)
    assert target.may_continue(world.clock.now())
    world.assert_balanced()


async def test_a_prompt_too_long_says_nothing_of_beginnings():
    refusal = fault(FaultKind.CONTEXT_LENGTH)
    refusal.answer = invalid_request("too long", code="context_length_exceeded")
    world = World(Script([ROLE, *says("It"), CUT]), Script(refusal))
    with pytest.raises(ApiError):
        await mended(world)
    assert world.pool.targets["b/m"].may_continue(world.clock.now())
    world.assert_balanced()


async def test_who_never_goes_on_is_not_asked_but_begins_anew():
    for said, want in ((says("It"), 0), ([], 1)):
        world = World(Script([ROLE, *said, CUT]), Script([ROLE, *says("It is."), END]))
        world.pool.targets["b/m"].continues = False
        world.pool.targets["a/m"].continues = False
        if want:
            assert text_of(await mended(world)) == "It is."
        else:
            with pytest.raises(ApiError):
                await mended(world)
        assert world.scripts["b"].opened == want
        world.assert_balanced()


async def test_the_only_target_is_not_asked_again_where_it_is_ejected():
    world = World(Script([ROLE, *says("It"), CUT], [*says(" is."), END]))
    assert text_of(await mended(world)) == "It is."
    world = World(Script([ROLE, *says("It"), CUT], [*says(" is."), END]))
    world.pool.targets["a/m"].lease(0.0).settle(Verdict.BAD, world.clock.now())
    with pytest.raises(ApiError):
        await mended(world)
    assert outcomes(world) == [("a/m", "impossible")]
    world.assert_balanced()


async def test_a_finish_was_sent_so_that_only_the_end_is_missing():
    world = World(
        Script([ROLE, *says("It."), event(chunk({}, finish="stop")), fault(FaultKind.MALFORMED)])
    )
    assert text_of(await mended(world)) == "It."
    assert outcomes(world) == [("a/m", "completed")]
    assert world.seen(RequestDone)[0].outcome == "ok"
    world.assert_balanced()


async def test_what_failed_attempts_told_is_burnt():
    """An answer without a piece says that it took 7 tokens, before the first byte and in the rest's place."""
    world = World(Script([b""]), Script([ROLE, *says("It"), CUT]), Script([*says(" is."), END]))
    assert text_of(await mended(world)) == "It is."
    (done,) = world.seen(RequestDone)
    assert (done.burnt_input_tokens, done.burnt_output_tokens) == (None, 7)
    world = World(Script([ROLE, *says("It"), CUT]), Script([b""]), Script([*says(" is."), END]))
    assert text_of(await mended(world)) == "It is."
    assert world.seen(RequestDone)[0].burnt_output_tokens == 7


@pytest.mark.parametrize("kind", [FaultKind.DEADLINE, FaultKind.CLIENT_SLOW])
async def test_a_fault_that_nobody_mends_is_told(kind):
    world = World(Script([ROLE, *says("It"), fault(kind)]), Script([*says(" is."), END]))
    with pytest.raises(ApiError):
        await mended(world)
    assert world.scripts["b"].opened == 0
    world.assert_balanced()
