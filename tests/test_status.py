"""The status document: what it says of models, targets, engines, and that it says no more."""

import asyncio

import msgspec
import pytest

from engines.base import EngineError
from engines.simulated.engine import SimulatedEngine
from engines.specs import SimulatedSpec
from router.app import Router
from router.config.reader import parse
from router.errors import ApiError
from router.policy.breaker import Verdict
from router.ratelimits import Reading
from router.status import FRESH_S, Overview, Status
from tests.clocks import ManualClock
from tests.upstream import Upstream, reset

SECRETS = ("sk-client-0123456789", "sk-provider-0123456789", "sk-admin-0123456789", "x-org-secret")
CONFIG = """
server: {admin_key: sk-admin-0123456789}
keys: [{id: me, secret: sk-client-0123456789}]
health: {failures: 2, eject_s: 30, slow_start_s: 40}
providers:
  p: {base_url: "http://x.test/v1", api_key: sk-provider-0123456789, headers: {x-org: x-org-secret}}
  q: {base_url: "http://y.test/v1"}
engines: {e: {kind: simulated, slots: 4, kv_tokens: 8192, context_tokens: 2048, ttft_ms: 1, tokens_per_s: 5000}}
models:
  m:
    aliases: [mm]
    policy: round_robin
    context_tokens: 4096
    targets: [{provider: p, model: big, max_inflight: 2}, {provider: q, model: big}]
  small: {targets: [{engine: e}]}
"""


class World:
    def __init__(self, config: str = CONFIG, engines=None):
        self.clock = ManualClock()
        self.router = Router(parse(config, "a test", {}), engines=engines, clock=self.clock)
        self.overview = Overview(self.router, self.clock)

    def target(self, id_: str):
        return self.router.pool.targets[id_]

    def status(self) -> Status:
        return msgspec.json.decode(
            msgspec.json.encode(self.overview.collect("ready")), type=Status, strict=True
        )

    def seen(self, id_: str):
        return next(one for one in self.status().targets if one.id == id_)


def test_at_rest():
    world = World()
    status = world.status()
    assert (status.health, status.inflight, status.waiting, status.asks_for_keys) == (
        "ready",
        0,
        0,
        True,
    )
    assert status.totals.requests == 0
    assert status.errors == status.history == ()
    model, small = status.models
    assert (model.name, model.aliases, model.policy, model.context_tokens) == (
        "m",
        ("mm",),
        "round_robin",
        4096,
    )
    assert (model.targets, model.admitting, small.admitting) == (("p/big", "q/big"), 2, 0)
    first = world.seen("p/big")
    assert (first.kind, first.backend, first.model, first.models) == (
        "provider",
        "p",
        "big",
        ("m",),
    )
    assert (first.state, first.until_s, first.inflight, first.most_inflight, first.share) == (
        "admitting",
        None,
        0,
        2,
        1.0,
    )
    assert world.seen("q/big").most_inflight is None
    (engine,) = status.engines
    assert (engine.name, engine.kind, engine.state, engine.restarts) == (
        "e",
        "simulated",
        "stopped",
        0,
    )
    assert (engine.slots, engine.kv_tokens) == (None, None)


def test_every_state_of_a_target():
    world = World()
    target, now = world.target("p/big"), world.clock.now()
    leases = [target.lease(now), target.lease(now)]
    assert (world.seen("p/big").state, world.seen("p/big").inflight) == ("full", 2)
    assert world.status().models[0].admitting == 1
    leases[0].settle(Verdict.VOID, now, retry_after_s=12)
    assert (world.seen("p/big").state, world.seen("p/big").until_s) == ("paused", 12)
    leases[1].settle(Verdict.BAD, now)
    target.lease(now).settle(Verdict.BAD, now)
    assert (world.seen("p/big").state, world.seen("p/big").until_s) == ("ejected", 30)
    world.clock.advance(29)
    assert world.seen("p/big").until_s == 1
    world.clock.advance(5)
    assert (world.seen("p/big").state, world.seen("p/big").until_s) == ("ejected", 0)
    now = world.clock.now()
    probe = target.lease(now)
    assert (world.seen("p/big").state, world.seen("p/big").until_s) == ("probing", None)
    probe.settle(Verdict.GOOD, now)
    seen = world.seen("p/big")
    assert (seen.state, seen.share) == ("admitting", 0.1)


@pytest.mark.parametrize(
    ("node", "state"),
    [
        ("starting", "starting"),
        ("loading", "starting"),
        ("backoff", "restarting"),
        ("failed", "failed"),
        ("stopped", "stopped"),
        ("draining", "stopped"),
    ],
)
def test_an_engines_target_is_in_the_state_of_its_process(node, state, monkeypatch):
    world = World()
    stats = world.router.engines()[0]
    monkeypatch.setattr(
        world.router, "engines", lambda: [msgspec.structs.replace(stats, state=node)]
    )
    assert world.seen("e").state == state


def test_quota_and_the_pause_of_a_provider_that_doesnt_say_how_long():
    world = World()
    target, now = world.target("q/big"), world.clock.now()
    target.quota.hear((Reading("requests", 100, 25, 30.0),), now)
    (gauge,) = world.seen("q/big").quota
    assert (gauge.resource, gauge.limit, gauge.remaining) == ("requests", 100, 25)
    target.quota.refused(now, None, told=False)
    seen = world.seen("q/big")
    assert seen.state == "paused"
    assert 0 < seen.until_s <= 60


def test_nothing_secret_is_in_it():
    world = World()
    document = world.overview.document("ready").decode()
    for secret in SECRETS:
        assert secret not in document
    assert "x.test" not in document


def test_it_is_collected_when_asked_and_not_more_often_than_fresh_s():
    world = World()
    first = world.overview.document("ready")
    lease = world.target("p/big").lease(world.clock.now())
    assert world.overview.document("ready") is first
    assert b'"draining"' in world.overview.document("draining")
    world.clock.advance(FRESH_S)
    assert msgspec.json.decode(world.overview.document("ready"), type=Status).inflight == 1
    lease.settle(Verdict.VOID, world.clock.now())


async def test_an_engine_of_the_embedder():
    engine = SimulatedEngine(SimulatedSpec(slots=4, kv_tokens=8192, ttft_ms=1))
    router = Router(parse(CONFIG, "a test", {}), engines={"e": engine})
    overview = Overview(router)
    async with router:
        (seen,) = overview.collect("ready").engines
        assert (seen.state, seen.kind, seen.slots, seen.kv_tokens) == (
            "ready",
            "simulated",
            4,
            8192,
        )
        engine.health = dead
        (seen,) = overview.collect("ready").engines
        assert (seen.state, seen.detail) == ("failed", "the GPU fell off")


def dead():
    raise EngineError("died", "the GPU fell off")


async def test_a_process_that_died_is_restarted_and_counted():
    config = CONFIG.replace("ttft_ms: 1,", "ttft_ms: 1, faults: {die: 0},")
    router = Router(parse(config, "a test", {}))
    overview = Overview(router)
    async with router:
        asked = {"model": "small", "messages": [{"role": "user", "content": "[[fault:die]]"}]}
        with pytest.raises(ApiError):
            await router.chat(asked)
        async with asyncio.timeout(30):
            while not (status := overview.collect("ready")).engines[0].restarts:
                await asyncio.sleep(0.01)
        await router.wait_ready()
        assert overview.collect("ready").engines[0].state == "ready"
        assert {"engine", "request", "attempt"} <= {error.what for error in status.errors}
        assert all("fault:die" not in error.detail for error in status.errors)


async def test_a_failed_attempt_has_its_requests_id_and_no_prompt():
    async with Upstream(reset()) as bad:
        config = f"""
providers: {{p: {{base_url: {bad.url!r}}}}}
models: {{m: {{targets: [{{provider: p}}]}}}}
"""
        router = Router(parse(config, "a test", {}))
        overview = Overview(router)
        async with router:
            asked = {"model": "m", "messages": [{"role": "user", "content": "a-canary-prompt"}]}
            await router.chat(asked)
            status = overview.collect("ready")
        (error,) = status.errors
        assert (error.what, error.kind, error.target) == ("attempt", "connection_reset", "p/m")
        assert error.request_id.startswith("req_")
        assert (status.totals.requests, status.totals.errors) == (1, 0)
        assert b"a-canary-prompt" not in msgspec.json.encode(status)
