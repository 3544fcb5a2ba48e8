"""From a provider's headers to the choice of the next target, and to the wait where there is none."""

from __future__ import annotations

import random

import pytest

from router import Router
from router.backends.base import Facts as AnswerFacts
from router.backends.base import Limits
from router.config.schema import Config, Model, Provider, Retry, Target
from router.dispatch import Call, Dispatcher, Terms
from router.errors import ApiError, Fault, FaultKind
from router.facts import ATTACHMENT_TOKENS, size_of
from router.load import Facts
from router.policy.breaker import Verdict
from router.policy.quota import PAUSE_S, SILENT
from router.pool import MANY, Refusal, build
from router.ratelimits import NOTHING_SPENT, Reading, Spent
from router.wire.chat import ChatRequest, Message, decode_chat
from router.wire.messages import ImagePart, ImageUrl, TextPart
from tests.clocks import ManualClock
from tests.upstream import Upstream, json_answer


def config(*names, policy="round_robin", **urls):
    return Config(
        providers={
            name: Provider(base_url=urls.get(name, f"http://{name}.test/v1")) for name in names
        },
        models={
            "m": Model(targets=[Target(provider=name, model="m") for name in names], policy=policy)
        },
    )


def told(remaining, reset_s=60.0, limit=60, resource="requests"):
    return (Reading(resource, limit, remaining, reset_s),)


def tell(pool, name, *args, now=0.0, **fields):
    pool.targets[f"{name}/m"].quota.hear(told(*args, **fields), now)


# The pool


def test_who_has_nothing_left_is_passed_over():
    pool = build(config("a", "b", "c"))
    tell(pool, "b", 0)
    picked = [pool.route("m").lease(0).target.backend for _ in range(4)]
    assert picked == ["a", "c", "a", "c"]
    assert "b" in [pool.route("m").lease(1).target.backend for _ in range(3)]


def test_an_answer_ends_a_row_of_refusals_though_nobody_counts():
    pool = build(config("a"))
    quota = pool.targets["a/m"].quota
    for _ in range(SILENT):
        pool.route("m").lease(0).settle(Verdict.GOOD, 0, spent=Spent(1, 1))
    assert not quota.counting
    now = 0.0
    for _ in range(5):
        lease = pool.route("m").lease(now)
        lease.refused((), now, None)
        lease.settle(Verdict.VOID, now)
        assert quota.closed_until == now + PAUSE_S
        now = quota.closed_until
        pool.route("m").lease(now).settle(Verdict.GOOD, now)


def test_where_nobody_has_the_refusal_says_who_is_first():
    pool = build(config("a", "b"))
    tell(pool, "a", 0, 120.0)
    tell(pool, "b", 0, 30.0)
    assert pool.route("m").lease(0) == Refusal("quota", pytest.approx(0.5))
    assert pool.route("m").lease(0.5).target.backend == "b"
    refusal = pool.route("m").lease(0.5)
    assert refusal == Refusal("quota", pytest.approx(1.0)), "the lease has taken it"


def test_who_rests_may_be_the_first():
    pool = build(config("a", "b"))
    tell(pool, "a", 0, 600.0)
    pool.targets["b/m"].resting_until = 4.0
    assert pool.route("m").lease(0) == Refusal("quota", 4.0)
    assert pool.route("m").lease(0, exclude={pool.targets["b/m"]}).retry_at == pytest.approx(10)


def test_the_size_of_a_request_decides_whether_it_fits():
    pool = build(config("a", "b"))
    tell(pool, "a", 2000, 58.0, limit=60_000, resource="tokens")
    tell(pool, "b", 50_000, 10.0, limit=60_000, resource="tokens")
    large, small = Facts(20_000), Facts(500)
    assert [pool.route("m").lease(0, (), large).target.backend for _ in range(2)] == ["b", "b"]
    assert {pool.route("m").lease(0, (), small).target.backend for _ in range(2)} == {"a", "b"}


def test_a_lease_holds_its_share_and_gives_it_back_once():
    pool = build(config("a"))
    tell(pool, "a", 30_000, 30.0, limit=60_000, resource="tokens")
    (target,) = pool.targets.values()

    def left():
        return target.quota.gauges(0)[0].remaining

    lease = pool.route("m").lease(0, (), Facts(5000, (), 100))
    assert left() == 24_900
    lease.settle(Verdict.VOID, 0, None, None, NOTHING_SPENT)
    assert left() == 30_000
    pool.route("m").lease(0, (), Facts(5000, (), 100)).settle(
        Verdict.GOOD, 0, None, 300, Spent(6000, 300)
    )
    assert left() == 23_700


def test_accounts_at_one_provider_are_targets_of_their_own():
    pool = build(config("mine", "yours", mine="https://x.test/v1", yours="https://x.test/v1"))
    tell(pool, "mine", 0)
    assert {pool.route("m").lease(0).target.backend for _ in range(3)} == {"yours"}


def test_of_very_many_whoever_has_something_left_is_found():
    names = [f"p{i}" for i in range(MANY + 20)]
    pool = build(config(*names, policy="power_of_two"))
    for name in names[1:]:
        tell(pool, name, 0)
    assert pool.route("m").lease(0).target.backend == "p0"


def test_a_route_of_silent_providers_stops_asking_for_sizes():
    pool = build(config("a"))
    route = pool.route("m")
    assert route.wants_size()
    for _ in range(8):
        route.lease(0, (), Facts(10)).settle(Verdict.GOOD, 1, None, 5, Spent(10, 5))
    assert not route.wants_size()
    lease = route.lease(2)
    lease.refused(told(0), 2, 1.0)
    lease.settle(Verdict.VOID, 2, 1.0, None, NOTHING_SPENT)
    assert route.wants_size(), "a 429 had headers"
    assert isinstance(route.lease(2.5), Refusal)


# Sizes at a glance


def test_a_body_is_four_bytes_a_token_but_for_attachments():
    body = (
        b'{"model":"m","messages":[{"role":"user","content":"'
        + b"word " * 800
        + b'"}],"max_tokens":7}'
    )
    facts = size_of(decode_chat(body), len(body))
    assert (facts.input_tokens, facts.output_limit, facts.blocks) == (len(body) // 4, 7, ())
    image = ImagePart(ImageUrl("data:image/png;base64," + "A" * 400_000))
    request = ChatRequest(model="m", messages=[Message("user", [TextPart("x" * 400), image])])
    tokens = size_of(request, 401_000).input_tokens
    assert ATTACHMENT_TOKENS + 100 <= tokens < ATTACHMENT_TOKENS + 120


# The walk


class Provides:
    """A backend whose answers have readings."""

    def __init__(self, *acts):
        self.acts = list(acts)

    async def open(self, order):
        act = self.acts.pop(0)
        if isinstance(act, Exception):
            raise act
        return Whole(act)


class Whole:
    def __init__(self, readings):
        self.headers, self.pieces, self.facts = {}, [b"{}"], AnswerFacts()
        self.facts.readings = readings
        self.facts.finished = True
        self.facts.input_tokens, self.facts.output_tokens = 10, 5

    async def read(self):
        return self.pieces.pop() if self.pieces else b""

    async def pour(self, sink, record=None):
        pass

    def close(self):
        pass


def limited(*readings, retry_after_s=None):
    fault = Fault(FaultKind.RATE_LIMITED, "no", retry_after_s=retry_after_s)
    fault.readings = readings
    return fault


class World:
    def __init__(self, **backends):
        self.clock, self.pool = ManualClock(), build(config(*backends))
        terms = Terms(Limits(1, 10, 10), Limits(1, 300, 10), Retry(attempts=3, backoff_s=0.1))
        self.dispatcher = Dispatcher(
            backends, terms, clock=self.clock, rng=random.Random(1), emit=lambda event: None
        )

    async def ask(self, deadline_s=60.0):
        now = self.clock.now()
        request = ChatRequest(model="m", messages=[Message("user", "hi")])
        call = Call(request, b"{}", self.pool.route("m"), "req_1", "dev", now, now + deadline_s)
        reply = await self.dispatcher.open(call)
        while await reply.read():
            pass
        reply.close()
        return reply.target


async def test_headers_of_an_answer_make_the_next_request_wait_no_longer_than_it_must():
    world = World(a=Provides(told(0, 60.0), told(0, 60.0)))
    began = world.clock.now()
    await world.ask()
    assert world.clock.now() == began
    await world.clock.run(world.ask())
    assert world.clock.now() - began == pytest.approx(1.0)
    assert world.pool.targets["a/m"].inflight == 0


async def test_headers_of_a_refusal_are_heard():
    world = World(a=Provides(limited(*told(0, 60.0)), ()), b=Provides((), ()))
    assert await world.ask() == "b/m"
    (gauge,) = world.pool.targets["a/m"].quota.gauges(world.clock.now())
    assert (gauge.limit, gauge.remaining) == (60, 0)
    assert await world.ask() == "b/m"


async def test_a_wait_beyond_the_deadline_is_a_429_with_its_true_retry_after():
    world = World(a=Provides(told(0, 3600.0)))
    await world.ask()
    with pytest.raises(ApiError) as caught:
        await world.ask(deadline_s=10.0)
    assert caught.value.status == 429
    assert caught.value.headers["retry-after"] == "60"


# The whole way


async def test_a_provider_that_says_it_is_empty_is_left_alone_and_shown():
    headers = {
        "x-ratelimit-limit-requests": "100",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "100m0s",
    }
    async with Upstream(default=json_answer(headers=headers)) as one, Upstream() as two:
        urls = {"a": f"http://127.0.0.1:{one.port}/v1", "b": f"http://127.0.0.1:{two.port}/v1"}
        async with Router(config("a", "b", **urls)) as router:
            for _ in range(6):
                await router.chat({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
            stats = {one.target: one for one in router.stats().targets}
        assert (len(one.requests), len(two.requests)) == (1, 5)
        (gauge,) = stats["a/m"].quota
        assert (gauge.resource, gauge.limit, gauge.remaining) == ("requests", 100, 0)
        assert gauge.reset_s == pytest.approx(6000, abs=5)
        assert stats["b/m"].quota == ()
