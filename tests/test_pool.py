"""Routes, leases and refusals."""

from __future__ import annotations

import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engines.specs import LlamaCppSpec, SimulatedSpec
from router.config.schema import Config, Health, Model, Provider, Target
from router.errors import IllegalMove
from router.facts import facts_of
from router.load import Facts
from router.policy.breaker import Verdict
from router.pool import MANY, SAMPLE, Refusal, build, cache_tokens, costs_of, policy_of
from router.target import Lease
from router.wire.chat import decode_chat


def config(health=None, **models):
    return Config(
        models=models,
        providers={name: Provider(base_url=f"http://{name}.test/v1") for name in "abc"},
        health=health or Health(failures=2, eject_s=30, max_ejected=1),
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


def test_in_a_panic_the_least_bad_serve(pool):
    for target in pool.targets.values():
        eject(target)
    for name in "ac":  # its probe fails: ejected twice
        pool.targets[f"{name}/m"].lease(30).settle(Verdict.BAD, 30)
    assert names(pool, 1, now=31) == ["b"]
    assert set(names(pool, 2, now=31)) == {"a", "c"}, "b is being probed"
    assert names(pool, 3, now=31) == ["b"] * 3, "all are: the one that failed least often"


def test_of_several_targets_one_always_serves_as_admitting():
    pool = build(config(Health(failures=1), big=model("a", "b", "c")))
    for _ in range(20):
        for target in pool.targets.values():
            if target.state == "admitting":
                target.lease(0).settle(Verdict.BAD, 0)
    states = sorted(target.state for target in pool.targets.values())
    assert states == ["admitting", "ejected", "ejected"]


def test_a_target_counts_in_every_model_that_lists_it():
    pool = build(config(Health(failures=1), x=model("a", "b"), y=model("b", "c"), z=model("c")))
    a, b, c = (pool.targets[f"{name}/m"] for name in "abc")
    eject(a)
    b.lease(0).settle(Verdict.BAD, 0)
    assert b.state == "admitting", "x has nobody else"
    eject(c)
    assert c.state == "ejected"
    assert pool.route("z").lease(1).target is c, "alone in z, it serves all the same"


@pytest.mark.parametrize("policy", ["round_robin", "weighted", "power_of_two", "least_inflight"])
def test_a_readmitted_target_gets_its_share_little_by_little(policy):
    health = Health(failures=1, slow_start_s=100)
    pool = build(config(health, big=model("a", "b", policy=policy), other=model("b", "c")))
    route, target = pool.route("big"), pool.targets["b/m"]
    eject(target)
    target.lease(30).settle(Verdict.GOOD, 30)

    def share(now):
        leases = [route.lease(now) for _ in range(300)]
        for lease in leases:
            lease.settle(Verdict.GOOD, now)
        return sum(lease.target is target for lease in leases) / 300

    assert share(31) < 0.2
    assert 0.2 < share(80) < 0.45
    assert share(130) == pytest.approx(0.5, abs=0.1)
    members = [*route.members, *pool.route("other").members]
    assert {(member.warmth, member.weight) for member in members} == {(1, 1)}


def test_a_narrowed_rotation_takes_turns_of_its_own_members(pool):
    route = pool.route("big")
    narrow = route.only(route.members[1:])
    assert [narrow.lease(0).target.backend for _ in range(4)] == ["b", "c", "b", "c"]
    assert names(pool, 2) == ["a", "b"]


@pytest.mark.parametrize("policy", ["round_robin", "weighted"])
def test_a_rotation_finds_the_one_of_very_many_that_is_up(policy):
    pool = engines(MANY * 4, policy)
    for target in pool.targets.values():
        target.available = target.id == "e40"
    route = pool.route("m")
    assert [route.lease(0).target.id for _ in range(3)] == ["e40"] * 3
    assert isinstance(route.lease(0, exclude={pool.targets["e40"]}), Refusal)


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


def engines(count, policy=None, **fields):
    spec = SimulatedSpec(kv_tokens=6400, **fields)
    names = [f"e{i}" for i in range(count)]
    listed = Model(targets=[Target(engine=name) for name in names], policy=policy)
    return build(Config(engines=dict.fromkeys(names, spec), models={"m": listed}))


def test_several_engines_are_weighed_by_cost_and_all_else_by_requests():
    engine, provider = Target(engine="e"), Target(provider="p")
    assert policy_of(Model(targets=[engine, engine])) == "expected_cost"
    assert policy_of(Model(targets=[engine])) == "least_inflight"
    assert policy_of(Model(targets=[engine, provider])) == "local_first"
    assert policy_of(Model(targets=[engine, engine], policy="lmetric")) == "lmetric"


def test_only_a_choice_that_weighs_requests_asks_for_facts():
    assert engines(2).route("m").wants_facts
    assert not engines(1, "expected_cost").route("m").wants_facts
    assert not engines(2, "round_robin").route("m").wants_facts


def test_siblings_go_where_their_beginning_is():
    route = engines(4).route("m")
    one, two = Facts(640, tuple(range(10))), Facts(640, tuple(range(100, 110)))
    first = [route.lease(0, facts=facts) for facts in (one, two)]
    for lease in first:
        lease.first_token(0.1)
        lease.settle(Verdict.GOOD, 1, output_tokens=20)
    again = [route.lease(2, facts=facts).target for facts in (one, two)]
    assert again == [lease.target for lease in first]


def test_a_prompt_longer_than_any_cache_is_found_by_as_much_as_the_largest_holds():
    assert engines(2).route("m").most_blocks == 100
    names = {"small": SimulatedSpec(kv_tokens=640), "large": SimulatedSpec(kv_tokens=64_000)}
    listed = Model(targets=[Target(engine=name) for name in names], policy="expected_cost")
    pool = build(Config(engines=names, models={"m": listed}))
    assert pool.route("m").most_blocks == 1000
    assert pool.route("m").only(pool.route("m").members[:1]).most_blocks == 10
    text = decode_chat(json.dumps({"model": "m", "messages": [SAID]}).encode())
    facts = facts_of(text, pool.route("m").most_blocks)
    assert (len(facts.blocks), facts.input_tokens) == (1000, 75_001)
    for now in range(2):
        pool.route("m").lease(now, facts=facts).settle(Verdict.GOOD, now)
    held = {depth for depth, _ in pool.index.depths(facts.blocks)}
    assert max(held) == 64_000


SAID = {"role": "user", "content": "say " * 75_000}


def test_what_a_lease_holds_is_counted_and_given_back():
    pool = engines(2)
    lease = pool.route("m").lease(0, facts=Facts(640, (), output_limit=10))
    load = lease.target.load
    assert (load.pending_tokens, load.context_tokens, load.reserved_tokens) == (640, 0, 650)
    lease.first_token(1)
    assert (load.pending_tokens, load.context_tokens, load.reserved_tokens) == (0, 640, 650)
    lease.settle(Verdict.GOOD, 2)
    assert (load.pending_tokens, load.context_tokens, load.reserved_tokens) == (0, 0, 0)


def test_a_target_that_left_has_no_cache():
    pool = engines(2)
    facts = Facts(640, tuple(range(10)))
    target = pool.route("m").lease(0, facts=facts).target
    assert pool.index.blocks(target.load.slot) == 10
    pool.forget_cache(target)
    assert pool.index.depths(facts.blocks) == []


def test_the_mean_answer_is_learned_from_good_ones():
    route = engines(2).route("m")
    before = route.outputs.value
    route.lease(0).settle(Verdict.BAD, 1, output_tokens=0)
    assert route.outputs.value == before
    route.lease(0).settle(Verdict.GOOD, 1, output_tokens=0)
    assert route.outputs.value < before


def test_of_very_many_a_sample_is_scored_and_holders_are_among_it():
    pool = engines(MANY * 10, "expected_cost")
    route = pool.route("m")
    facts = Facts(6400, tuple(range(100)))
    home = route.lease(0, facts=facts)
    home.settle(Verdict.GOOD, 1)
    for now in range(20):
        lease = route.lease(now, facts=facts)
        assert lease.target is home.target
        lease.settle(Verdict.GOOD, now)


def test_of_very_many_those_who_admit_are_found_though_no_sample_shows_them():
    pool = engines(MANY + SAMPLE, "least_inflight")
    for target in pool.targets.values():
        target.available = target.id == "e40"
    assert pool.route("m").lease(0).target.id == "e40"
    pool.targets["e40"].available = False
    assert isinstance(pool.route("m").lease(0), Refusal)


def test_what_engines_say_of_themselves():
    spec = SimulatedSpec(prefill_tokens_per_s=1000, tokens_per_s=50, batch_penalty=0.1)
    costs = costs_of(spec)
    assert (costs.prefill_token_s, costs.step_s, costs.request_s) == (0.001, 0.02, 0.002)
    assert cache_tokens(LlamaCppSpec(model="starter", slots=2, context_tokens=100)) == 200
    assert cache_tokens(None) is None
    assert costs_of(None) is costs_of(LlamaCppSpec(model="starter"))


def test_a_full_target_is_left_out_and_all_full_is_a_refusal_until_an_answer_ends():
    listed = [Target(provider=name, model="m", max_inflight=2) for name in "ab"]
    route = build(config(big=Model(targets=listed))).route("big")
    leases = [route.lease(0) for _ in range(4)]
    assert sorted(lease.target.backend for lease in leases) == ["a", "a", "b", "b"]
    assert route.lease(0) == Refusal("full", float("inf"))
    leases[1].settle(Verdict.GOOD, 1)
    assert route.lease(1).target is leases[1].target


def test_full_beside_one_at_rest_says_when_the_rest_ends():
    listed = [Target(provider="a", model="m", max_inflight=1), Target(provider="b", model="m")]
    route = build(config(big=Model(targets=listed, policy="round_robin"))).route("big")
    route.lease(0)
    route.members[1].target.resting_until = 7.0
    assert route.lease(0) == Refusal("full", 7.0)
    assert route.lease(7).target.backend == "b"


def test_nobody_goes_to_an_ejected_target_while_a_good_one_is_only_full():
    listed = [Target(provider="a", model="m", max_inflight=1), Target(provider="b", model="m")]
    route = build(config(big=Model(targets=listed))).route("big")
    for _ in range(2):
        route.members[1].target.lease(0).settle(Verdict.BAD, 0)
    assert route.lease(0).target.backend == "a"
    assert route.lease(0) == Refusal("full", 30.0)
    assert route.lease(30).target.backend == "b"


def test_the_limit_holds_in_a_panic_too():
    listed = [Target(provider="a", model="m", max_inflight=1)]
    route = build(config(big=Model(targets=listed))).route("big")
    for _ in range(2):
        route.members[0].target.lease(0).settle(Verdict.BAD, 0)
    lease = route.lease(0)
    assert lease.target.backend == "a"
    assert route.lease(0).reason == "full"
    lease.settle(Verdict.GOOD, 1)
    assert route.lease(1).target is lease.target


def test_of_several_limits_of_one_target_the_smallest_counts():
    pool = build(
        config(
            one=Model(targets=[Target(provider="a", model="m", max_inflight=5)]),
            two=Model(targets=[Target(provider="a", model="m", max_inflight=3)]),
            three=Model(targets=[Target(provider="a", model="m")]),
        )
    )
    assert pool.targets["a/m"].concurrency.limit == 3


def test_a_lease_tells_of_an_overload_and_of_answers():
    route = build(config(big=model("a"))).route("big")
    leases = [route.lease(0) for _ in range(10)]
    leases[0].settle(Verdict.VOID, 1, overloaded=True)
    assert route.members[0].target.concurrency.limit == 7
    assert route.lease(1).reason == "full"
    for lease in leases[1:4]:
        lease.settle(Verdict.GOOD, 1)
    late = route.lease(2)
    late.settle(Verdict.GOOD, 3)
    assert route.members[0].target.concurrency.limit > 7


LOADS = ("inflight", "pending_tokens", "pending_us", "context_tokens", "reserved_tokens")


class Leases(RuleBasedStateMachine):
    """Requests of two routes that share targets, in any order of starts, first tokens, ends and retries: nobody's load
    is ever negative, a request in flight is counted once, and after the last all loads are exactly zero.
    """

    def __init__(self):
        super().__init__()
        spec, health = SimulatedSpec(kv_tokens=6400), Health(failures=2, slow_start_s=20)
        models = {
            name: Model(targets=[Target(engine=one) for one in of], policy=policy)
            for name, of, policy in [("x", "abc", "expected_cost"), ("y", "bcd", "weighted")]
        }
        config = Config(engines=dict.fromkeys("abcd", spec), models=models, health=health)
        self.pool = build(config)
        self.now, self.open = 0.0, []

    @rule(
        name=st.sampled_from("xy"),
        tokens=st.integers(1, 9000),
        head=st.integers(0, 3),
        limit=st.sampled_from([None, 1, 5000]),
        tried=st.sets(st.sampled_from("abcd"), max_size=2),
    )
    def start(self, name, tokens, head, limit, tried):
        route = self.pool.route(name)
        blocks = tuple(range(head * 100, head * 100 + tokens // 64))
        facts = Facts(tokens, blocks, limit) if route.wants_facts else None
        exclude = {self.pool.targets[one] for one in tried}
        lease = route.lease(self.now, exclude, facts)
        if not isinstance(lease, Refusal):
            assert lease.target not in exclude
            assert lease.target in {member.target for member in route.members}
            self.open.append(lease)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 10**6))
    def first_token(self, which):
        self.open[which % len(self.open)].first_token(self.now)

    @precondition(lambda self: self.open)
    @rule(
        which=st.integers(0, 10**6),
        verdict=st.sampled_from(Verdict),
        rest=st.sampled_from([None, None, 3.0]),
    )
    def settle(self, which, verdict, rest):
        lease = self.open.pop(which % len(self.open))
        lease.settle(verdict, self.now, rest, 50)
        lease.first_token(self.now)

    @rule(seconds=st.sampled_from([0.01, 1.0, 40.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule(which=st.sampled_from("abcd"), up=st.booleans())
    def process(self, which, up):
        target = self.pool.targets[which]
        target.available = up
        if not up:
            self.pool.forget_cache(target)

    @invariant()
    def loads_are_those_of_the_open_leases(self):
        for target in self.pool.targets.values():
            assert min(getattr(target.load, name) for name in LOADS) >= 0
            assert target.inflight == sum(lease.target is target for lease in self.open)

    def teardown(self):
        for lease in self.open:
            lease.settle(Verdict.VOID, self.now)
        for target in self.pool.targets.values():
            assert [getattr(target.load, name) for name in LOADS] == [0] * len(LOADS)


Leases.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestLeases = Leases.TestCase
