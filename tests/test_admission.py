"""The line: in order, bounded, nobody lost, nothing leaked, truthful about time."""

from __future__ import annotations

import asyncio

import pytest

from router.app import Router
from router.config.reader import parse
from router.errors import ApiError, FaultKind
from router.events import RequestDone
from router.wire.chat import ChatRequest, Message
from tests.clocks import ManualClock
from tests.gates import Gate, World, overload, quiet


def refusal(task):
    error = task.exception()
    assert isinstance(error, ApiError)
    return error.status, error.error.code


async def ask(world, *names, **fields):
    """Clients that come one after another."""
    tasks = []
    for name in names:
        tasks.append(world.ask(name=name, **fields))
        await quiet()
    return tasks


async def drained(world):
    """Answer everybody until nobody is there."""
    while any(gate.held for gate in world.gates.values()):
        for gate in world.gates.values():
            if gate.held:
                gate.let()
        await quiet()


async def test_whoever_finds_it_full_waits_in_order():
    world = World(most=2)
    tasks = await ask(world, *"123456")
    gate = world.gates["a"]
    assert gate.order == ["1", "2"]
    gate.let(at=1)
    await quiet()
    assert gate.order == ["1", "2", "3"]
    await drained(world)
    assert gate.order == list("123456")
    assert [task.result() for task in tasks] == [b"ok"] * 6
    assert world.outcomes() == ["served"] * 4
    assert gate.most == 2
    world.assert_empty()


async def test_higher_priorities_go_first_then_who_came_first():
    world = World()
    await ask(world, "now")
    await ask(world, "low1", "low2")
    await ask(world, "high1", "high2", priority=5)
    await ask(world, "batch", priority=-1)
    await ask(world, "low3")
    await drained(world)
    order = world.gates["a"].order
    assert order == ["now", "high1", "high2", "low1", "low2", "low3", "batch"]
    world.assert_empty()


async def test_waiting_is_not_the_routers_overhead():
    world = World()
    await ask(world, "1", "2")
    world.clock.advance(7)
    await drained(world)
    done = [event for event in world.events if isinstance(event, RequestDone)]
    assert [event.overhead_s for event in done] == [0, 0]
    assert [event.duration_s for event in done] == [7, 7]


async def test_a_busy_target_stops_only_those_that_need_it():
    world = World()
    await ask(world, "m1", "m2", model="m")
    await ask(world, "one", model="one")
    await ask(world, "m3", model="m")
    world.gates["b"].let()
    await quiet()
    assert world.gates["b"].order == ["m2", "m3"]
    await drained(world)
    assert world.gates["a"].order == ["m1", "one"]
    world.assert_empty()


async def test_an_answer_for_another_model_makes_room_and_its_line_counts_too():
    world = World()
    await ask(world, "n1", "n2", model="n")
    await ask(world, "m1", model="m")
    await ask(world, "m2", model="m")
    await ask(world, "n3", model="n")
    await ask(world, "n4", model="n", priority=1)
    world.gates["b"].let()
    await quiet()
    assert world.gates["b"].order[-1] == "n4"
    world.gates["b"].let()
    await quiet()
    assert world.gates["b"].order[-1] == "m2"
    await drained(world)
    world.assert_empty()


async def test_a_request_that_failed_goes_before_those_that_came_later():
    world = World(most=1)
    await ask(world, "first")
    world.clock.advance(1)
    await ask(world, "second", "third")
    world.gates["a"].let(overload(FaultKind.SERVER_ERROR))
    await quiet()
    assert world.gates["a"].order == ["first", "second"]
    world.clock.advance(0.1)
    world.gates["a"].let()
    await quiet()
    assert world.gates["a"].order == ["first", "second", "first"]
    await drained(world)
    world.assert_empty()


async def test_whoever_failed_at_one_target_waits_for_the_other_without_a_pause():
    world = World(most=1)
    tasks = await ask(world, "1", "2", model="m")
    world.gates["a"].let(overload(FaultKind.SERVER_ERROR, retry_after_s=50))
    await quiet()
    assert world.gates["b"].order == ["2"]
    world.gates["b"].let()
    await quiet()
    assert world.gates["b"].order == ["2", "1"]
    await drained(world)
    assert [task.result() for task in tasks] == [b"ok", b"ok"]
    world.assert_empty()


async def test_a_full_line_refuses_at_once_and_says_when():
    world = World(queue=3)
    await ask(world, *"1234")
    refused = world.ask(name="5")
    await quiet()
    assert refusal(refused) == (503, "overloaded")
    assert refused.exception().headers == {"retry-after": "4", "retry-after-ms": "4000"}
    assert refused.exception().error.type == "server_error"
    assert world.outcomes() == ["full"]
    await drained(world)
    assert world.gates["a"].order == list("1234")
    world.assert_empty()


async def test_retry_after_follows_the_pace_and_the_place():
    world = World(queue=20)
    await ask(world, *map(str, range(21)))
    for _ in range(12):
        world.clock.advance(2)
        world.gates["a"].let()
        await quiet()
        await ask(world, "more")
    (low,) = await ask(world, "low")
    waited = float(low.exception().headers["retry-after-ms"]) / 1000
    assert waited == pytest.approx(21 * 2, rel=0.1)
    await drained(world)
    world.assert_empty()


async def test_retry_after_is_capped():
    world = World(queue=3, max_wait_s=500)
    await ask(world, *"1234")
    world.clock.advance(400)
    (refused,) = await ask(world, "5")
    assert refused.exception().headers["retry-after"] == "60"
    await drained(world)


async def test_a_higher_priority_displaces_the_youngest_of_the_lowest():
    world = World(queue=3)
    tasks = dict(zip("1234", await ask(world, *"1234"), strict=True))
    (high,) = await ask(world, "high", priority=1)
    assert refusal(tasks["4"]) == (503, "overloaded")
    assert world.outcomes() == ["displaced"]
    (same,) = await ask(world, "same")
    assert refusal(same) == (503, "overloaded")
    await drained(world)
    assert world.gates["a"].order == ["1", "high", "2", "3"]
    assert high.result() == b"ok"
    world.assert_empty()


async def test_the_sheddable_leave_the_line_to_others():
    world = World(queue=100)
    await ask(world, "now")
    batch = await ask(world, *("batch",) * 100, priority=-1)
    shed = [task for task in batch if task.done()]
    assert {refusal(task) for task in shed} == {(503, "overloaded")}
    assert 10 < 100 - len(shed) < 33
    others = await ask(world, *("other",) * (100 - world.pool.route("one").line.waiting))
    assert not any(task.done() for task in others)
    assert set(world.outcomes()) == {"shed"}
    await drained(world)
    world.assert_empty()


async def test_who_waits_too_long_hears_so():
    world = World(max_wait_s=30)
    first, second = await ask(world, "1", "2")
    world.clock.advance(29)
    await quiet()
    assert not second.done()
    world.clock.advance(1)
    await quiet()
    assert refusal(second) == (503, "overloaded")
    assert float(second.exception().headers["retry-after-ms"]) > 30_000
    assert world.outcomes() == ["expired"]
    await drained(world)
    assert first.result() == b"ok"
    world.assert_empty()


async def test_the_requests_deadline_ends_a_wait_too():
    world = World()
    _, second = await ask(world, "1", "2", within_s=5)
    world.clock.advance(5)
    await quiet()
    assert refusal(second) == (503, "overloaded")
    await drained(world)
    world.assert_empty()


async def test_a_rest_that_is_longer_than_anybody_may_wait_is_told_at_once():
    world = World(most=None, max_wait_s=30)
    world.target("a").resting_until = world.clock.now() + 45
    (refused,) = await ask(world, "1")
    assert refusal(refused) == (429, "rate_limit_exceeded")
    assert refused.exception().headers["retry-after"] == "45"
    assert world.outcomes() == ["hopeless"]
    world.assert_empty()


async def test_those_who_wait_for_a_rest_to_end_are_served_in_order():
    world = World(most=2)
    world.target("a").resting_until = world.clock.now() + 20
    await ask(world, *"1234")
    world.clock.advance(19)
    await quiet()
    assert world.gates["a"].order == []
    world.clock.advance(1)
    await quiet()
    assert world.gates["a"].order == ["1", "2"]
    await drained(world)
    assert world.gates["a"].order == list("1234")
    world.assert_empty()


async def test_an_engine_that_comes_back_takes_those_who_wait():
    world = World()
    await ask(world, "1", "2")
    target = world.target("a")
    target.available = False
    world.gates["a"].let()
    await quiet()
    assert world.gates["a"].order == ["1"]
    target.available = True
    target.freed(world.clock.now())
    await quiet()
    assert world.gates["a"].order == ["1", "2"]
    await drained(world)
    world.assert_empty()


async def test_a_client_that_leaves_is_out_of_the_line_and_nothing_is_sent_for_it():
    world = World()
    _, second, _ = await ask(world, "1", "2", "3")
    second.cancel()
    world.gates["a"].let()
    await quiet()
    assert second.cancelled()
    await drained(world)
    assert world.gates["a"].order == ["1", "3"]
    assert sorted(world.outcomes()) == ["gone", "served"]
    world.assert_empty()


async def test_a_client_that_leaves_in_the_moment_it_is_served_hands_on_what_it_got():
    world = World()
    _, second, _ = await ask(world, "1", "2", "3")
    (turn,) = (one for one in world.admission._waiting if one.walk.call.request_id == "2")
    world.gates["a"].let()
    while not turn.future.done():
        await asyncio.sleep(0)
    second.cancel()
    await quiet()
    assert second.cancelled()
    assert world.gates["a"].order == ["1", "3"]
    await drained(world)
    world.assert_empty()


@pytest.mark.parametrize("rounds", range(1, 14))
async def test_cancelled_at_any_moment_nobody_else_waits_for_ever(rounds):
    world = World()
    tasks = await ask(world, "1", "2", "3")
    world.gates["a"].let()
    for _ in range(rounds):
        await asyncio.sleep(0)
    tasks[1].cancel()
    await quiet()
    await drained(world)
    assert tasks[2].result() == b"ok"
    world.assert_empty()


async def test_the_first_refusals_set_the_limit_and_nobody_hears_of_them():
    """A burst of 40 against an upstream that takes 10 at once."""
    world = World(most=None, attempts=5)
    tasks = await ask(world, *map(str, range(40)))
    gate = world.gates["a"]
    assert len(gate.held) == 40
    for _ in range(30):
        gate.let(overload())
        await quiet()
    assert world.target("a").concurrency.limit == 10
    world.clock.advance(0.2)
    await quiet()
    assert len(gate.held) == 10
    while gate.held or world.pool.route("one").line.waiting:
        if len(gate.held) > 10:
            gate.let(overload(), at=-1)
        elif gate.held:
            gate.let()
        await quiet()
        world.clock.advance(0.2)
        await quiet()
    assert [task.result() for task in tasks] == [b"ok"] * 40
    world.assert_empty()


async def test_whoever_waits_when_the_router_closes_hears_that_it_does():
    world = World()
    first, second, third = await ask(world, "1", "2", "3")
    world.dispatcher.stop_waiting()
    (late,) = await ask(world, "4")
    await quiet()
    assert {refusal(task) for task in (second, third, late)} == {(503, "shutting_down")}
    await drained(world)
    assert first.result() == b"ok"
    assert world.outcomes() == ["closed"] * 3
    world.assert_empty()


async def test_an_empty_line_costs_a_request_nothing():
    world = World()
    await ask(world, "1")
    await drained(world)
    assert world.outcomes() == []
    assert world.clock.timers == 0


CONFIG = """
providers: {p: {base_url: "http://p.test/v1"}}
tiers: {gold: {priority: 10}, batch: {priority: -1, rpm: 1000000}}
keys:
  - {id: gold, secret: secret-gold, tier: gold}
  - {id: batch, secret: secret-batch, tier: batch}
  - {id: plain, secret: secret-plain}
models:
  m: {targets: [{provider: p, max_inflight: 10}], queue: {max: 2000}}
  other: {targets: [{provider: p, model: m, max_inflight: 20}]}
"""
BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'


class Site:
    """A whole router over one gate."""

    def __init__(self):
        self.clock = ManualClock()
        self.router = Router(parse(CONFIG), clock=self.clock)
        self.gate = self.router._backends["p"] = Gate()

    def ask(self, name, key_id="plain"):
        request = ChatRequest(model="m", messages=[Message("user", "hi")])
        return asyncio.ensure_future(self._whole(request, name, key_id))

    async def _whole(self, request, name, key_id):
        reply = await self.router.open(
            request, BODY, key_id=key_id, request_id=name, received_at=self.clock.now()
        )
        try:
            return await reply.read()
        finally:
            reply.close()


async def test_a_thousand_clients_against_ten_places():
    site = Site()
    names = [str(number) for number in range(1000)]
    tasks = [site.ask(name) for name in names]
    await quiet()
    (line,) = site.router.stats().lines
    assert (line.model, line.priority, line.waiting) == ("m", 0, 990)
    assert site.router.ready()
    while site.gate.held:
        assert site.router.inflight == len(site.gate.held) <= 10
        site.gate.let()
        await quiet()
    assert [task.result() for task in tasks] == [b"ok"] * 1000
    assert site.gate.order == names
    assert site.gate.most == 10
    assert site.router.stats().lines[0].waiting == 0
    await site.router.close()


async def test_a_keys_tier_says_its_priority():
    site = Site()
    for number in range(10):
        site.ask(str(number))
    await quiet()
    tasks = [site.ask(key_id, key_id) for key_id in ("batch", "plain", "gold")]
    await quiet()
    waiting = {one.priority: one.waiting for one in site.router.stats().lines}
    assert waiting == {-1: 1, 0: 1, 10: 1}
    while site.gate.held:
        site.gate.let()
        await quiet()
    assert site.gate.order[10:] == ["gold", "plain", "batch"]
    assert [task.result() for task in tasks] == [b"ok"] * 3
    await site.router.close()


async def test_what_was_reserved_is_settled_where_the_line_refuses():
    site = Site()
    for number in range(10):
        site.ask(str(number))
    await quiet()
    task = site.ask("batch", "batch")
    await quiet()
    site.router.stop_waiting()
    await quiet()
    assert refusal(task) == (503, "shutting_down")
    windows = site.router.accounts.pair("batch", "m").windows
    assert all(not window.gcra._holds for window in windows._all)
    while site.gate.held:
        site.gate.let()
        await quiet()
    await site.router.close()


@pytest.mark.parametrize(
    ("fault", "overloads"),
    [
        (overload(), True),
        (overload(retry_after_s=3), False),
        (overload(FaultKind.ENGINE_BUSY), True),
        (overload(FaultKind.TIMEOUT_CONNECT), True),
        (overload(FaultKind.SERVER_ERROR, status=503), True),
        (overload(FaultKind.SERVER_ERROR, status=500), False),
        (overload(FaultKind.CONNECT), False),
    ],
)
def test_what_an_overload_looks_like(fault, overloads):
    assert fault.overloads is overloads
