"""How requests are given their targets is counted, each once."""

from __future__ import annotations

import pytest

from engines.specs import SimulatedSpec
from router.config.schema import Config, Health, Model, Provider, Target
from router.errors import ApiError, FaultKind
from router.events import AttemptDone
from router.load import Facts
from router.policy.breaker import Verdict
from router.pool import build
from router.ratelimits import Reading
from tests.walks import Script, World, fault

PROVIDERS = {name: Provider(base_url=f"http://{name}.test/v1") for name in "ab"}


def pool_of(*targets, **fields):
    engines = {one.engine: SimulatedSpec() for one in targets if one.engine}
    health = Health(failures=1, eject_s=10, max_ejected=1, slow_start_s=0)
    models = {"m": Model(targets=list(targets), **fields)}
    return build(Config(models=models, providers=PROVIDERS, engines=engines, health=health))


def counts(pool):
    return {reason: count for reason, count in pool.routes["m"].decisions.counts.items() if count}


def test_one_of_several_or_the_only_one():
    pool = pool_of(Target(provider="a"), Target(provider="b"), policy="least_inflight")
    route = pool.route("m")
    route.lease(0)
    route.only(route.members[:1]).lease(0)
    route.lease(0, exclude={pool.targets["a/m"]})
    assert counts(pool) == {"policy": 1, "only": 2}


def test_probe_and_panic():
    pool = pool_of(Target(provider="a"), Target(provider="b"), policy="least_inflight")
    route = pool.route("m")
    for target in pool.targets.values():
        target.lease(0).settle(Verdict.BAD, 0)
    route.lease(1)
    assert counts(pool) == {"panic": 1}
    route.lease(11)
    assert counts(pool) == {"panic": 1, "probe": 1}


def test_a_provider_instead_of_an_engine_is_a_spill():
    pool = pool_of(Target(engine="e", max_inflight=1), Target(provider="a"), spill_s=60)
    route = pool.route("m")
    backends = [route.lease(0, facts=Facts(100)).target.backend for _ in range(2)]
    assert backends == ["e", "a"]
    assert counts(pool) == {"policy": 1, "spill": 1}


def test_rotations_count_too():
    pool = pool_of(Target(provider="a"), Target(provider="b"), policy="round_robin")
    pool.route("m").lease(0)
    assert counts(pool) == {"policy": 1}


def test_shares_of_prompts_that_were_sent_there_before():
    pool = pool_of(Target(engine="e"), Target(engine="f"))
    matches = pool.routes["m"].decisions.matches
    facts = Facts(128, (1, 2))
    pool.route("m").lease(0, facts=facts)
    assert (sum(matches.counts), matches.total) == (1, 0)
    pool.route("m").lease(0, facts=facts)
    pool.route("m").lease(0, facts=facts)
    assert sum(matches.counts) == 3
    assert matches.total >= 1, "at the latest the third goes where one was"
    pool.route("m").lease(0, facts=Facts(20))
    assert sum(matches.counts) == 3, "a prompt without a full block can match nothing"


def test_whoever_is_passed_over_for_a_limit():
    pool = pool_of(Target(provider="a"), Target(provider="b"), policy="least_inflight")
    quota = pool.targets["a/m"].quota
    readings = (Reading("requests", 10, 5, 30.0), Reading("tokens", 1000, 0, 60.0, "day"))
    quota.hear(readings, 0)
    assert pool.route("m").lease(0, facts=Facts(100)).target.backend == "b"
    assert quota.deferrals == {"tokens_day": 1}
    quota.refused(1, None, told=False)
    assert pool.route("m").lease(1, facts=Facts(100)).target.backend == "b"
    assert sum(quota.deferrals.values()) == 2
    assert pool.targets["b/m"].quota.deferrals == {}


async def test_a_request_that_must_wait_is_counted_with_the_reason():
    world = World(Script([b"x"]))
    world.pool.targets["a/m"].available = False
    with pytest.raises(ApiError, match="no target that is up"):
        await world.ask()
    decisions = world.pool.routes["m"].decisions.counts
    assert decisions["unavailable"] == 1


async def test_a_refusal_for_a_limit_names_the_one_that_was_used_up():
    limited = fault(FaultKind.RATE_LIMITED)
    limited.readings = (Reading("requests", 100, 40), Reading("tokens", 1000, 3, window="day"))
    world = World(Script(limited), Script([b"ok"]))
    await world.ask()
    assert [one.resource for one in world.seen(AttemptDone)] == ["tokens_day", None]
