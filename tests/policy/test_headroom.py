"""Two at random, by what is under way, what is left and what it costs."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from router.config.schema import Config, Model, Price, Provider, Target
from router.load import Demand, Facts
from router.policy.headroom import Headroom
from router.policy.least_inflight import LeastInflight
from router.pool import build, policy_of
from router.ratelimits import Reading
from router.target import Lease

PER_TOKEN = Demand(1000, 200.0)


def members(*prices, thrift=0.25, weights=(1, 1, 1)):
    names = "abc"[: len(prices)]
    listed = [
        Target(provider=name, price=price and Price(*price), weight=weight)
        for name, price, weight in zip(names, prices, weights, strict=False)
    ]
    pool = build(
        Config(
            providers={name: Provider(base_url=f"http://{name}.test/v1") for name in names},
            models={"m": Model(targets=listed, thrift=thrift)},
        )
    )
    return pool.route("m").members


def share(candidates, count=4000, demand=PER_TOKEN):
    policy, rng = Headroom(), random.Random(1)
    picks = Counter(policy.pick(candidates, demand, 0.0, rng).order for _ in range(count))
    return [picks[one.order] / count for one in candidates]


def test_it_is_the_default_for_providers_alone():
    engine, provider = Target(engine="e"), Target(provider="p")
    assert policy_of(Model(targets=[provider, provider])) == "headroom"
    assert policy_of(Model(targets=[provider])) == "headroom"
    assert policy_of(Model(targets=[engine, provider])) == "local_first"
    route = build(
        Config(
            providers={"p": Provider(base_url="http://p.test/v1")},
            models={"m": Model(targets=[provider, provider])},
        )
    ).route("m")
    assert route.wants_size()
    assert not route.wants_facts
    assert not isinstance(route.policy, LeastInflight)


def test_equal_ones_share_evenly():
    assert share(members(None, None, None)) == pytest.approx([1 / 3] * 3, abs=0.03)


def test_tokens_under_way_decide_not_requests():
    one, two = members(None, None)
    one.load.inflight, one.load.reserved_tokens = 1, 100_000
    two.load.inflight, two.load.reserved_tokens = 20, 10_000
    assert share([one, two]) == [0, 1]


def test_weights_are_shares():
    one, two = members(None, None, weights=(4, 1))
    one.load.reserved_tokens, two.load.reserved_tokens = 30_000, 10_000
    assert share([one, two]) == [1, 0]


def test_who_has_little_left_gets_little():
    one, two = members(None, None)
    one.target.quota.hear([Reading("tokens", 1000, 100, 54.0)], 0.0)
    assert one.headroom(0.0) == pytest.approx(0.1)
    one.load.reserved_tokens, two.load.reserved_tokens = 10_000, 50_000
    assert share([one, two]) == [0, 1]
    two.load.reserved_tokens = 500_000
    assert share([one, two]) == [1, 0], "but what it has is used"


def test_prices_break_near_ties():
    dear, cheap = members((10, 10), (1, 1))
    assert share([dear, cheap]) == [0, 1]
    cheap.load.reserved_tokens = 500
    assert share([dear, cheap]) == [0, 1]


def test_the_cheap_one_is_never_overloaded():
    dear, cheap = members((10, 10), (1, 1))
    dear.load.reserved_tokens, cheap.load.reserved_tokens = 10_000, 20_000
    assert share([dear, cheap]) == [1, 0], "ten times dearer is as bad as 1.8 times busier"
    free, dearer = members((0, 0), (100, 100))
    free.load.reserved_tokens, dearer.load.reserved_tokens = 500_000, 10_000
    assert share([free, dearer]) == [0, 1], "free has its bounds, too"


def test_prices_that_do_not_matter_or_are_not_known_change_nothing():
    assert share(members((10, 10), (1, 1), thrift=0)) == pytest.approx([0.5, 0.5], abs=0.03)
    assert share(members((10, 10), None)) == pytest.approx([0.5, 0.5], abs=0.03)


def test_input_and_output_cost_what_they_cost():
    reads, writes = members((1, 10), (10, 1))
    assert share([reads, writes], demand=Demand(10_000, 10.0)) == [1, 0]
    assert share([reads, writes], demand=Demand(10, 10_000.0)) == [0, 1]


def test_leases_spread_by_tokens():
    route = build(
        Config(
            providers={name: Provider(base_url=f"http://{name}.test/v1") for name in "ab"},
            models={"m": Model(targets=[Target(provider="a"), Target(provider="b")])},
        )
    ).route("m")
    rng = random.Random(2)
    for _ in range(200):
        assert isinstance(route.lease(0.0, (), Facts(rng.choice([10, 20_000]))), Lease)
    one, two = (member.load.reserved_tokens for member in route.members)
    assert abs(one - two) < 42_000
