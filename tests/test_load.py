"""What leases hold: exact whatever the order of their ends, and back at zero after the last."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from router.load import FEW, SAMPLES, Claim, Costs, Demand, Load, MeanOutput, Rate
from router.policy.breaker import Breaker, Verdict
from router.target import Target

SUMS = ("inflight", "pending_tokens", "pending_us", "context_tokens", "reserved_tokens")


def sums(load):
    return [getattr(load, name) for name in SUMS]


class Leases(RuleBasedStateMachine):
    """Any number of leases of one target, begun or not, settled in any order with any verdict."""

    leases = Bundle("leases")

    def __init__(self):
        super().__init__()
        self.target = Target("t", "b", "m", kind="engine", breaker=Breaker(3, 30.0))
        self.open = {}
        self.begun = set()
        self.now = 0.0

    @rule(
        target=leases,
        tokens=st.integers(0, 200_000),
        share=st.floats(0, 1),
        output=st.floats(0, 4000),
    )
    def send(self, tokens, share, output):
        self.now += 0.1
        demand = Demand(tokens, output, {0: int(tokens * share)})
        claim = self.target.load.claim(demand)
        lease = self.target.lease(self.now, claim)
        self.open[lease] = claim
        return lease

    @rule(lease=leases)
    def first_token(self, lease):
        self.now += 0.1
        lease.first_token(self.now)
        if lease in self.open:
            self.begun.add(lease)

    @rule(lease=consumes(leases), verdict=st.sampled_from(Verdict))
    def settle(self, lease, verdict):
        self.now += 0.1
        lease.settle(verdict, self.now)
        del self.open[lease]
        self.begun.discard(lease)

    @invariant()
    def the_sums_are_those_of_the_open_leases(self):
        waiting = [claim for lease, claim in self.open.items() if lease not in self.begun]
        begun = [claim for lease, claim in self.open.items() if lease in self.begun]
        assert sums(self.target.load) == [
            len(self.open),
            sum(claim.uncached_tokens for claim in waiting),
            sum(claim.work_us for claim in waiting),
            sum(claim.context_tokens for claim in begun),
            sum(claim.reserved_tokens for claim in self.open.values()),
        ]

    def teardown(self):
        for lease in list(self.open):
            lease.settle(Verdict.VOID, self.now)
        assert sums(self.target.load) == [0] * len(SUMS)


TestLeases = Leases.TestCase


def test_a_claim_is_what_the_target_has_not_cached():
    load = Load(3, Costs(prefill_token_s=1e-4, attention_s=1e-9))
    claim = load.claim(Demand(1000, 50.7, {3: 600}))
    assert claim == Claim(400, 1000, 1050, int(1e6 * (0.04 + 1e-9 * (400 * 600 + 400 * 400 / 2))))


def test_a_straggler_counts_for_nothing_after_its_settle():
    target = Target("t", "b", "m", kind="engine", breaker=Breaker(3, 30.0))
    lease = target.lease(0.0, target.load.claim(Demand(100, 10.0)))
    lease.settle(Verdict.VOID, 1.0)
    lease.first_token(2.0)
    assert sums(target.load) == [0] * len(SUMS)


def test_the_rate_shows_an_engines_own_speed_however_long_the_queues():
    rate = Rate()
    for i in range(300):
        rate.saw(0.4, 1.0 if i % 5 == 0 else 3.0)
    assert rate.value == pytest.approx(0.4)


def test_the_rate_waits_for_a_few_samples_and_forgets_old_ones():
    rate = Rate()
    for _ in range(FEW - 1):
        rate.saw(5.0, 1.0)
    assert rate.value == 1.0
    for _ in range(SAMPLES):
        rate.saw(0.5, 1.0)
    assert rate.value == 0.5
    rate.saw(0.0, 1.0)
    rate.saw(1.0, 0.0)
    assert rate.value == 0.5


def test_the_mean_of_answers_follows_them_slowly():
    mean = MeanOutput()
    mean.saw(840)
    assert mean.value == pytest.approx(210)
    for _ in range(1000):
        mean.saw(40)
    assert mean.value == pytest.approx(40, abs=0.1)
