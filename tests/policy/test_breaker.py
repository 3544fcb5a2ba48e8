"""Ejection, the one probe, and late answers that change nothing."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router.errors import IllegalMove
from router.policy.breaker import MAX_EJECT_FACTOR, TRANSITIONS, Breaker, Move, State, Verdict


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


class BreakerMachine(RuleBasedStateMachine):
    """Any order of requests and answers: at most one probe is judged, and permits of old terms are inert."""

    def __init__(self):
        super().__init__()
        self.breaker = Breaker(2, 10)
        self.now = 0.0
        self.open = []

    @rule()
    def send(self):
        self.open.append(self.breaker.enter())

    @precondition(lambda self: self.open)
    @rule(pick=st.randoms(use_true_random=False), verdict=st.sampled_from(Verdict))
    def answer(self, pick, verdict):
        permit = self.open.pop(pick.randrange(len(self.open)))
        before = self.breaker.state
        current = permit.term == self.breaker._term
        moved = self.breaker.settle(permit, verdict, self.now)
        assert moved == (self.breaker.state is not before)
        if not current:
            assert not moved
        if before is State.EJECTED:
            assert not moved

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds):
        self.now += seconds

    @invariant()
    def at_most_one_probe(self):
        probes = [p for p in self.open if p.probe and p.term == self.breaker._term]
        assert len(probes) == (1 if self.breaker.state is State.PROBING else 0)


BreakerMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestBreakerMachine = BreakerMachine.TestCase
