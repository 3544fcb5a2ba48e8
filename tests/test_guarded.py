"""Who is guarded: a target that isn't admits whatever comes, and nothing of it is counted."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engines.specs import SimulatedSpec
from router.config.schema import Config, Health, Model, Provider, Target
from router.policy.breaker import State, Verdict
from router.policy.quota import SILENT
from router.pool import Refusal, build
from router.ratelimits import Reading, Spent


def pool_of(policy="power_of_two", **most):
    """Providers a and b and an engine e, behind one model; ``most``: in flight at each."""
    providers = {name: Provider(base_url=f"http://{name}.test/v1") for name in "ab"}
    listed = [Target(provider=name, model="m", max_inflight=most.get(name)) for name in "ab"]
    listed.append(Target(engine="e", max_inflight=most.get("e")))
    return build(
        Config(
            providers=providers,
            engines={"e": SimulatedSpec(kv_tokens=6400)},
            models={"m": Model(targets=listed, policy=policy)},
            health=Health(failures=2, eject_s=30, slow_start_s=20),
        )
    )


def serve(pool, now=0.0, verdict=Verdict.GOOD, **settled):
    """One request at each target."""
    for target in pool.targets.values():
        target.lease(now).settle(verdict, now, **settled)


def silence(pool):
    """As many answers without a word of limits as it takes for nobody to be counted."""
    route = pool.route("m")
    for now in range(20 * SILENT):
        route.lease(now).settle(Verdict.GOOD, now, None, 5, Spent(1, 5))


def test_nobody_is_guarded_once_nothing_is_to_be_heeded():
    pool = pool_of()
    assert pool.guarded == {pool.targets["a/m"], pool.targets["b/m"]}, "they may tell of limits"
    silence(pool)
    assert pool.guarded == set()


def test_who_has_a_limit_of_the_config_stays_guarded():
    pool = pool_of(b=2)
    silence(pool)
    assert pool.guarded == {pool.targets["b/m"]}


def test_who_goes_down_is_guarded_until_it_answered_again():
    pool = pool_of()
    silence(pool)
    target = pool.targets["e"]
    target.available = False
    serve(pool)
    assert pool.guarded == {target}
    assert all(pool.route("m").lease(0).target is not target for _ in range(20))
    target.available = True
    serve(pool)
    assert pool.guarded == set()


def test_who_came_back_is_guarded_while_its_share_grows():
    pool = pool_of()
    silence(pool)
    target = pool.targets["a/m"]
    for now in (200, 200, 230):
        target.lease(now).settle(Verdict.GOOD if now == 230 else Verdict.BAD, now)
    assert target.state == "admitting"
    serve(pool, 240)
    assert pool.guarded == {target}
    pool.route("m").lease(251).settle(Verdict.VOID, 251)
    serve(pool, 251)
    assert pool.guarded == set()


class Guarded(RuleBasedStateMachine):
    """Whatever happens to targets, who isn't guarded admits, and nothing of it is counted."""

    def __init__(self):
        super().__init__()
        self.pool = pool_of(b=3)
        silence(self.pool)
        self.now, self.open = 1000.0, []

    @rule(tried=st.sets(st.sampled_from(["a/m", "b/m", "e"]), max_size=2))
    def start(self, tried):
        exclude = {self.pool.targets[one] for one in tried}
        lease = self.pool.route("m").lease(self.now, exclude)
        if not isinstance(lease, Refusal):
            assert lease.target not in exclude
            self.open.append(lease)

    @precondition(lambda self: self.open)
    @rule(
        which=st.integers(0, 10**6),
        verdict=st.sampled_from(Verdict),
        rest=st.sampled_from([None, None, 3.0]),
        overloaded=st.booleans(),
    )
    def settle(self, which, verdict, rest, overloaded):
        lease = self.open.pop(which % len(self.open))
        lease.settle(verdict, self.now, rest, 50, Spent(1, 50), overloaded)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 10**6), left=st.integers(0, 5))
    def hear(self, which, left):
        lease = self.open[which % len(self.open)]
        lease.hear((Reading("requests", 100, left, 1.0),), self.now)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 10**6), after_s=st.sampled_from([None, 2.0]))
    def refuse(self, which, after_s):
        self.open[which % len(self.open)].refused((), self.now, after_s)

    @rule(which=st.sampled_from(["a/m", "b/m", "e"]), up=st.booleans())
    def process(self, which, up):
        self.pool.targets[which].available = up

    @rule(seconds=st.sampled_from([0.01, 1.0, 40.0, 4000.0]))
    def wait(self, seconds):
        self.now += seconds

    @invariant()
    def who_is_not_guarded_admits(self):
        for target in set(self.pool.targets.values()) - self.pool.guarded:
            assert target.available
            assert target.breaker.state is State.ADMITTING
            assert target.resting_until <= self.now
            assert target.concurrency.limit == float("inf")
            assert all(place.warmth == 1 for place in target.places)
            assert target.quota is None or not (target.quota.counting or target.quota.knows)


Guarded.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestGuarded = Guarded.TestCase
