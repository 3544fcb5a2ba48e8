"""Ejection, the one probe, and late answers that change nothing."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router.errors import IllegalMove
from router.policy.breaker import (
    MAX_EJECT_FACTOR,
    TRANSITIONS,
    Breaker,
    Cohort,
    Move,
    State,
    SuccessRate,
    Verdict,
)


def trip(breaker, now=0.0):
    while breaker.state is State.ADMITTING:
        breaker.settle(breaker.enter(), Verdict.BAD, now)


def test_failures_in_a_row_eject():
    breaker = Breaker(3, 30)
    for _ in range(2):
        breaker.settle(breaker.enter(), Verdict.BAD, 0)
    assert breaker.admits(0)
    assert breaker.settle(breaker.enter(), Verdict.BAD, 0)
    assert breaker.state is State.EJECTED
    assert not breaker.admits(29.9)
    assert breaker.admits(30)


def test_a_success_in_between_starts_the_count_anew():
    breaker = Breaker(2, 30)
    for verdict in (Verdict.BAD, Verdict.GOOD, Verdict.BAD):
        breaker.settle(breaker.enter(), verdict, 0)
    assert breaker.state is State.ADMITTING


def test_void_verdicts_blame_nobody():
    breaker = Breaker(1, 30)
    for _ in range(10):
        breaker.settle(breaker.enter(), Verdict.VOID, 0)
    assert breaker.state is State.ADMITTING


def test_a_good_probe_readmits():
    breaker = Breaker(1, 30)
    trip(breaker)
    permit = breaker.enter()
    assert breaker.state is State.PROBING
    assert not breaker.admits(1000)
    breaker.settle(permit, Verdict.GOOD, 31)
    assert breaker.state is State.ADMITTING


def test_a_bad_probe_ejects_for_longer_up_to_a_cap():
    breaker = Breaker(1, 30)
    trip(breaker)
    now = 0.0
    lengths = []
    for _ in range(12):
        now = breaker.until
        breaker.settle(breaker.enter(), Verdict.BAD, now)
        lengths.append(breaker.until - now)
    assert lengths[:3] == [60, 90, 120]
    assert lengths[-1] == 30 * MAX_EJECT_FACTOR


def test_a_probe_without_a_verdict_lets_the_next_request_probe():
    breaker = Breaker(1, 30)
    trip(breaker)
    breaker.settle(breaker.enter(), Verdict.VOID, 31)
    assert breaker.state is State.EJECTED
    assert breaker.admits(31)


def test_a_stragglers_late_success_does_not_readmit():
    breaker = Breaker(1, 30)
    straggler = breaker.enter()
    trip(breaker)
    assert not breaker.settle(straggler, Verdict.GOOD, 1)
    assert breaker.state is State.EJECTED
    probe = breaker.enter()
    assert not breaker.settle(straggler, Verdict.BAD, 2)
    assert breaker.settle(probe, Verdict.GOOD, 3)
    assert not breaker.settle(straggler, Verdict.BAD, 4)
    assert breaker.state is State.ADMITTING


def test_every_move_not_in_the_table_raises():
    for state in State:
        for move in Move:
            breaker = Breaker(1, 1)
            breaker.state = state
            if (state, move) in TRANSITIONS:
                breaker._move(move)
            else:
                with pytest.raises(IllegalMove, match=move.value.upper()):
                    breaker._move(move)


def tell(breaker, now, *verdicts):
    return [breaker.settle(breaker.enter(), verdict, now) for verdict in verdicts]


def test_a_low_rate_ejects_who_never_fails_twice_in_a_row():
    breaker = Breaker(5, 30, SuccessRate(30, 20, 0.5))
    tell(breaker, 0, *[Verdict.GOOD, Verdict.BAD] * 10)
    assert breaker.state is State.ADMITTING, "half is enough"
    assert tell(breaker, 1, Verdict.BAD) == [True]


def test_a_burst_is_seen_though_the_window_is_good_on_average():
    breaker = Breaker(1000, 30, SuccessRate(30, 20, 0.5))
    tell(breaker, 0, *[Verdict.GOOD] * 500)
    tell(breaker, 10, *[Verdict.BAD, Verdict.GOOD, Verdict.BAD] * 7)
    assert breaker.state is State.EJECTED


def test_there_is_no_rate_of_a_few_nor_of_what_is_long_ago():
    rate = SuccessRate(30, 20, 0.5)
    for _ in range(19):
        rate.saw(0, good=False)
    assert not rate.is_low(0)
    rate.saw(29.9, good=False)
    assert rate.is_low(29.9)
    assert not rate.is_low(30), "its first bucket is forgotten"


def test_a_limit_counts_in_the_rate_only():
    breaker = Breaker(5, 30, SuccessRate(30, 20, 0.5))
    tell(breaker, 0, *[Verdict.LIMITED] * 19)
    assert breaker.state is State.ADMITTING
    assert tell(breaker, 0, Verdict.LIMITED) == [True]
    breaker.settle(breaker.enter(), Verdict.LIMITED, 30)
    assert breaker.until == 30 + 60, "a probe that found no room is none that was answered"


def test_a_limit_between_failures_neither_counts_nor_starts_anew():
    breaker = Breaker(2, 30)
    assert tell(breaker, 0, Verdict.BAD, Verdict.LIMITED, Verdict.BAD) == [False, False, True]


def test_a_readmitted_target_starts_with_a_clean_sheet():
    breaker = Breaker(5, 30, SuccessRate(1000, 20, 0.5))
    tell(breaker, 0, *[Verdict.LIMITED] * 20)
    tell(breaker, 30, Verdict.GOOD, *[Verdict.LIMITED] * 19)
    assert breaker.state is State.ADMITTING


def cohort_of(count, max_ejected, failures=1):
    cohort, breakers = Cohort(count, max_ejected), [Breaker(failures, 30) for _ in range(count)]
    for breaker in breakers:
        breaker.join(cohort)
    return breakers


@pytest.mark.parametrize(
    ("count", "share", "most"),
    [(2, 0.0, 1), (2, 0.8, 1), (3, 0.8, 2), (5, 0.8, 4), (10, 0.3, 3), (10, 0.1, 1), (3, 1.0, 3)],
)
def test_a_share_of_a_cohort_may_be_out_and_one_in_any_case(count, share, most):
    breakers = cohort_of(count, share)
    for breaker in breakers:
        tell(breaker, 0, *[Verdict.BAD] * 3)
    assert [breaker.state for breaker in breakers].count(State.EJECTED) == most


def test_who_should_be_out_goes_as_soon_as_there_is_room():
    first, second = cohort_of(2, 0.5)
    tell(first, 0, Verdict.BAD)
    assert tell(second, 0, Verdict.BAD, Verdict.BAD) == [False, False]
    tell(first, 30, Verdict.GOOD)
    assert tell(second, 30, Verdict.BAD) == [True]


def test_the_least_bad_is_who_is_not_probed_and_was_ejected_least_often():
    once, twice, probed = Breaker(1, 30), Breaker(1, 30), Breaker(1, 30)
    for breaker in (once, twice, probed):
        trip(breaker)
    tell(twice, 30, Verdict.BAD)
    probed.enter()
    assert sorted([probed, twice, once], key=lambda one: one.badness) == [once, twice, probed]


class BreakerMachine(RuleBasedStateMachine):
    """Any order of requests and answers at a cohort: at most one probe each is judged, permits of old terms are
    inert, only legal moves happen, and never more are out than may be.
    """

    def __init__(self):
        super().__init__()
        self.cohort = Cohort(4, 0.5)
        self.breakers = []
        for _ in range(4):
            self.breakers.append(Breaker(2, 10, SuccessRate(20, 4, 0.5)))
            self.breakers[-1].join(self.cohort)
        self.now = 0.0
        self.open = []

    @rule(which=st.integers(0, 3))
    def send(self, which):
        breaker = self.breakers[which]
        before = breaker.state
        permit = breaker.enter()
        assert permit.probe == (before is State.EJECTED)
        self.open.append((breaker, permit))

    @precondition(lambda self: self.open)
    @rule(pick=st.integers(0, 10**6), verdict=st.sampled_from(Verdict))
    def answer(self, pick, verdict):
        breaker, permit = self.open.pop(pick % len(self.open))
        before, term, until = breaker.state, breaker._term, breaker.until
        current = permit.term == term
        moved = breaker.settle(permit, verdict, self.now)
        after = breaker.state
        assert moved == (after is not before)
        if not current:
            assert (breaker._term, breaker.until) == (term, until), "a straggler changes nothing"
        if moved:
            assert after in {to for (at, _), to in TRANSITIONS.items() if at is before}
            assert breaker._term == term + 1
        if before is State.PROBING and moved:
            assert permit.probe
            assert (after is State.ADMITTING) == (verdict is Verdict.GOOD)
        if before is State.ADMITTING and moved:
            assert verdict in {Verdict.BAD, Verdict.LIMITED}
            assert breaker.until == self.now + 10

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0, 11.0, 100.0]))
    def wait(self, seconds):
        self.now += seconds

    @invariant()
    def at_most_one_probe(self):
        for breaker in self.breakers:
            probes = [p for b, p in self.open if b is breaker and p.probe and p.term == b._term]
            assert len(probes) == (1 if breaker.state is State.PROBING else 0)

    @invariant()
    def no_more_out_than_may_be(self):
        out = sum(breaker.state is not State.ADMITTING for breaker in self.breakers)
        assert out == self.cohort.out <= self.cohort.most


BreakerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestBreakerMachine = BreakerMachine.TestCase
