"""Routes, leases and refusals."""

from __future__ import annotations

import pytest

from router.config.schema import Config, Health, Model, Provider, Target
from router.errors import IllegalMove
from router.policy.breaker import Verdict
from router.pool import Refusal, build
from router.target import Lease


def config(**models):
    return Config(
        models=models,
        providers={name: Provider(base_url=f"http://{name}.test/v1") for name in "abc"},
        health=Health(failures=2, eject_s=30),
    )


def model(*providers, **fields):
    return Model(targets=[Target(provider=name, model="m") for name in providers], **fields)


@pytest.fixture
def pool():
    return build(config(big=model("a", "b", "c", aliases=["Large"], policy="round_robin")))


def names(pool, count, now=0.0):
    return [pool.route("big").lease(now).target.backend for _ in range(count)]


def test_names_and_aliases_lead_to_the_route(pool):
    route = pool.route("big")
    assert route is pool.route("BIG") is pool.route("large") is pool.route("LARGE")
    assert pool.route("huge") is None


def test_three_hundred_leases_spread_evenly(pool):
    picked = names(pool, 300)
    assert {name: picked.count(name) for name in "abc"} == {"a": 100, "b": 100, "c": 100}
    assert [target.inflight for target in pool.targets.values()] == [100, 100, 100]


def test_a_lease_is_settled_exactly_once(pool):
    lease = pool.route("big").lease(0)
    assert lease.target.inflight == 1
    lease.settle(Verdict.GOOD, 1)
    assert lease.target.inflight == 0
    with pytest.raises(IllegalMove, match="lease of a/m"):
        lease.settle(Verdict.GOOD, 1)
    assert lease.target.inflight == 0


def test_tried_targets_are_left_out_until_all_are(pool):
    route = pool.route("big")
    tried = set()
    for _ in range(3):
        tried.add(route.lease(0, exclude=tried).target)
    assert len(tried) == 3
    assert route.lease(5, exclude=tried) == Refusal("all_tried", 5)


def eject(target, now=0.0):
    while target.state == "admitting":
        target.lease(now).settle(Verdict.BAD, now)


def test_an_ejected_target_gets_nothing_until_its_probe(pool):
    eject(pool.targets["b/m"])
    assert set(names(pool, 10, now=29)) == {"a", "c"}
    assert "b" in names(pool, 3, now=30)
    assert pool.targets["b/m"].state == "probing"
    assert "b" not in names(pool, 10, now=31)


def test_when_all_are_ejected_they_serve_all_the_same(pool):
    for target in pool.targets.values():
        eject(target)
    assert set(names(pool, 6, now=1)) == {"a", "b", "c"}


def test_who_asks_for_rest_gets_it_even_when_nobody_else_is_left(pool):
    route = pool.route("big")
    for _ in range(3):
        lease = route.lease(0)
        lease.settle(Verdict.VOID, 0, retry_after_s=20 if lease.target.backend != "b" else 10)
    assert route.lease(9) == Refusal("resting", 10)
    assert route.lease(10).target.backend == "b"


def test_a_route_whose_processes_are_down_refuses(pool):
    for target in pool.targets.values():
        target.available = False
    refusal = pool.route("big").lease(7)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "unavailable"
    assert refusal.retry_at > 7


def test_models_that_share_a_target_share_its_load_and_health():
    pool = build(config(x=model("a"), y=model("a", "b")))
    assert len(pool.targets) == 2
    lease = pool.route("x").lease(0)
    assert isinstance(lease, Lease)
    assert pool.route("y").lease(0).target.backend == "b"
    assert [target.id for target in pool.of_backend("a")] == ["a/m"]
