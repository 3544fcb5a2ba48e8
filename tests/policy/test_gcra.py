"""The limit's arithmetic: exact, never over, nothing lost and nothing given twice."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router.policy.gcra import Gcra, reserve_all

MINUTE, DAY = 60, 86_400


def remaining(gcra, now):
    """Units that would be allowed now."""
    return max(0, gcra.limit - gcra.used(now))


def reset_s(gcra, now):
    """How long until it is full again if nothing more is taken."""
    return gcra.level(now) / (gcra.scale * 1e9)


def admitted(limit, count, now, units=1):
    taken = 0
    for _ in range(count):
        if limit.wait_s(units, now) == 0:
            limit.take(units, now)
            taken += 1
    return taken


@pytest.mark.parametrize("limit", [1, 3, 7, 60, 28_800, 40_000])
def test_after_rest_exactly_the_limit_comes_at_once(limit):
    gcra = Gcra(limit, MINUTE)
    assert admitted(gcra, limit + 50, 1000.123) == limit
    assert remaining(gcra, 1000.123) == 0
    assert reset_s(gcra, 1000.123) == MINUTE


def test_then_one_for_each_share_of_the_window():
    gcra = Gcra(60, MINUTE)
    admitted(gcra, 60, 1000.0)
    assert gcra.wait_s(1, 1000.0) == 1.0
    assert gcra.wait_s(1, 1000.75) == 0.25
    assert admitted(gcra, 5, 1001.0) == 1
    assert gcra.wait_s(10, 1001.0) == 10.0
    assert admitted(gcra, 100, 1031.0) == 30


def test_more_than_the_whole_limit_never_fits():
    assert Gcra(60, MINUTE).wait_s(61, 0.0) == float("inf")
    assert Gcra(60, MINUTE).wait_s(60, 0.0) == 0


def test_what_was_not_used_is_given_back():
    gcra = Gcra(100, MINUTE)
    hold = gcra.reserve(80, 0.0)
    assert gcra.wait_s(30, 0.0) == 6.0
    gcra.settle(hold, 20, 0.0)
    assert remaining(gcra, 0.0) == 80
    with pytest.raises(KeyError):
        gcra.settle(hold, 20, 0.0)


def test_what_was_used_beyond_is_charged_and_delays_the_next():
    gcra = Gcra(100, MINUTE)
    gcra.settle(gcra.reserve(50, 0.0), 130, 0.0)
    assert remaining(gcra, 0.0) == 0
    assert gcra.wait_s(1, 0.0) == pytest.approx(31 * 0.6)


def test_what_has_drained_meanwhile_cannot_be_given_back():
    gcra = Gcra(60, MINUTE)
    long = gcra.reserve(60, 0.0)
    assert admitted(gcra, 100, 600.0) == 60, "the long one's units drained long ago"
    gcra.settle(long, 0, 600.0)
    assert admitted(gcra, 100, 600.0) == 0, "its end is no second burst"


def test_giving_back_moves_who_stands_behind():
    gcra = Gcra(60, MINUTE)
    first, second = gcra.reserve(20, 0.0), gcra.reserve(20, 0.0)
    gcra.settle(first, 0, 10.0)
    gcra.settle(second, 0, 10.0)
    assert remaining(gcra, 10.0) == 60
    assert gcra.is_idle(10.0)


def test_the_last_day_of_a_month_is_a_day():
    start = datetime(2027, 1, 31, 23, 59, 59, tzinfo=UTC)
    gcra = Gcra(2, DAY)
    for hours in range(0, 24 * 60, 12):  # over the ends of January and February, at the rate
        now = (start + timedelta(hours=hours)).timestamp()
        assert gcra.wait_s(1, now) == 0
        gcra.take(1, now)
    burst = (start + timedelta(days=70)).timestamp()
    assert admitted(gcra, 5, burst) == 2
    assert gcra.wait_s(1, burst) == DAY / 2


def test_who_moved_forward_drains_earlier():
    gcra = Gcra(60, MINUTE)
    first, second = gcra.reserve(20, 0.0), gcra.reserve(20, 0.0)
    gcra.settle(first, 0, 0.0)
    gcra.take(60, 25.0)
    gcra.settle(second, 0, 26.0)
    assert gcra.used(26.0) == 59, "the second's units had drained at 20"


moves = st.lists(
    st.tuples(
        st.sampled_from(["take", "reserve", "reserve", "settle", "settle"]),
        st.integers(1, 4),
        st.sampled_from([0.0, 0.0, 0.0, 0.125, 7.0, 20.0, 45.0, 61.5]),
    ),
    max_size=60,
)
"""Pauses and sizes where a window fills, drains half or drains whole."""


@settings(max_examples=400)
@given(limit=st.integers(1, 6), script=moves)
def test_never_over_in_any_span(limit, script):
    """Used units in any span of s seconds: at most the burst and the rate, whatever is held and given back."""
    gcra = Gcra(limit, MINUTE)
    now, held, log = 1000.0, [], []
    for what, units, pause in script:
        now += pause
        if what == "settle" and held:
            hold, mark = held.pop(units % len(held))
            used = min(hold.units, units - 1)
            gcra.settle(hold, used, now)
            log[mark] = (log[mark][0], used)
        elif gcra.wait_s(units, now) == 0:
            if what == "take":
                gcra.take(units, now)
            else:
                held.append((gcra.reserve(units, now), len(log)))
            log.append((now, units))
    for first, (start, _) in enumerate(log):
        total = 0
        for at, units in log[first:]:
            total += units
            assert total <= limit * (1 + (at - start) / MINUTE) + 1e-6


@given(limit=st.integers(1, 50), script=moves)
def test_what_is_settled_at_once_as_reserved_or_as_nothing_balances(limit, script):
    gcra, twin = Gcra(limit, MINUTE), Gcra(limit, MINUTE)
    now = 0.0
    for what, units, pause in script:
        now += pause
        if gcra.wait_s(units, now):
            continue
        hold = gcra.reserve(units, now)
        if what == "take":
            twin.take(units, now)
            gcra.settle(hold, units, now)
        else:
            gcra.settle(hold, 0, now)
        assert gcra.used(now) == twin.used(now)
        assert reset_s(gcra, now) == reset_s(twin, now)
    assert gcra.is_idle(now + 2 * MINUTE)


@given(limit=st.integers(1, 10**12), now=st.floats(0, 1e9), units=st.integers(1, 10**12))
def test_the_wait_that_it_names_is_enough(limit, now, units):
    gcra = Gcra(limit, DAY)
    gcra.take(limit, now)
    wait = gcra.wait_s(units, now)
    if units <= limit:
        assert gcra.wait_s(units, now + wait + 1e-6) == 0


class Walked:
    """The same limit without a tree: a settling walks along all who stand behind. Times are nanoseconds by limit."""

    def __init__(self, limit):
        self.limit, self.step, self.tat, self.ends = limit, MINUTE * 10**9, 0, {}

    def reserve(self, name, units, now):
        self.tat = max(self.tat, round(now * 1e9) * self.limit) + units * self.step
        self.ends[name] = self.tat

    def settle(self, name, held, units, now):
        behind = list(self.ends)[list(self.ends).index(name) + 1 :]
        end, at = self.ends.pop(name), round(now * 1e9) * self.limit
        if units > held:
            self.tat = max(self.tat, at) + (units - held) * self.step
            return
        back = min((held - units) * self.step, max(0, end - at))
        self.tat -= back
        for later in behind:
            self.ends[later] -= back


many_moves = st.lists(
    st.tuples(
        st.booleans(), st.integers(0, 9), st.integers(0, 9), st.sampled_from([0, 0, 0, 0.125, 7])
    ),
    max_size=300,
)


@settings(max_examples=300)
@given(limit=st.integers(1, 100), script=many_moves, spare=st.sampled_from([1, 4, 64]))
def test_a_tree_moves_who_stands_behind_as_a_walk_does(limit, script, spare):
    """Whatever is held, in whatever order it is settled, with less, as much or more than was held."""
    gcra, walked, held, now = Gcra(limit, MINUTE), Walked(limit), [], 1000.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("router.policy.gcra._SPARE_PLACES", spare)
        for number, (comes, units, which, pause) in enumerate(script):
            now += pause
            if comes or not held:
                held.append((number, gcra.reserve(units, now)))
                walked.reserve(number, units, now)
            else:
                name, hold = held.pop(which % len(held))
                gcra.settle(hold, units, now)
                walked.settle(name, hold.units, units, now)
            assert gcra.tat * (gcra.limit // gcra.scale) == walked.tat


def test_thousands_are_settled_in_any_order():
    gcra, walked, rng = Gcra(10**6, MINUTE), Walked(10**6), random.Random(5)
    held = []
    for number in range(1500):
        held.append((number, gcra.reserve(100, number / 1000)))
        walked.reserve(number, 100, number / 1000)
    rng.shuffle(held)
    for name, hold in held:
        gcra.settle(hold, 40, 2.0)
        walked.settle(name, 100, 40, 2.0)
        assert gcra.tat * (gcra.limit // gcra.scale) == walked.tat
    assert gcra.is_idle(MINUTE + 2.0)


@given(
    counted=st.lists(st.integers(1, 4), max_size=2),
    weighed=st.lists(st.integers(1, 30), max_size=2),
    script=moves,
)
def test_several_limits_are_taken_together_or_not_at_all(counted, weighed, script):
    """As if each were asked by itself, and only then all were taken."""
    joint = [[Gcra(limit, MINUTE) for limit in limits] for limits in (counted, weighed)]
    apart = [[Gcra(limit, MINUTE) for limit in limits] for limits in (counted, weighed)]
    now, held = 1000.0, []
    for what, units, pause in script:
        now += pause
        if what == "settle" and held:
            for gcra, hold in held.pop(units % len(held)):
                gcra.settle(hold, units - 1, now)
            continue
        waits = [gcra.wait_s(1, now) for gcra in apart[0]]
        waits += [gcra.wait_s(units, now) for gcra in apart[1]]
        before = [gcra.tat for gcra in joint[0] + joint[1]]
        taken = reserve_all(*joint, units, now)
        assert (taken is None) == any(waits)
        if taken is None:
            assert before == [gcra.tat for gcra in joint[0] + joint[1]]
            continue
        for gcra in apart[0]:
            gcra.take(1, now)
        held.append(taken[1] + [(gcra, gcra.reserve(units, now)) for gcra in apart[1]])
        assert taken[0] == [gcra.level(now) for gcra in apart[0] + apart[1]]


class GcraMachine(RuleBasedStateMachine):
    """Takes, reservations, settlings and time in any order. A settling gives back at most what was taken and frees
    nobody beyond the limit; used units never exceed what any span allows.
    """

    def __init__(self):
        super().__init__()
        self.gcra, self.now = Gcra(6, MINUTE), 1000.0
        self.held, self.log = [], []

    @rule(units=st.integers(1, 4), keep=st.booleans())
    def ask(self, units, keep):
        if self.gcra.wait_s(units, self.now) > 0:
            return
        before = self.gcra.used(self.now)
        if keep:
            self.held.append((self.gcra.reserve(units, self.now), len(self.log)))
        else:
            self.gcra.take(units, self.now)
        self.log.append([self.now, units])
        assert before < self.gcra.used(self.now) <= self.gcra.limit

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 10**6), share=st.sampled_from([0.0, 0.5, 1.0]))
    def settle(self, which, share):
        hold, mark = self.held.pop(which % len(self.held))
        taken, used = hold.units, int(hold.units * share)
        before = self.gcra.used(self.now)
        self.gcra.settle(hold, used, self.now)
        after = self.gcra.used(self.now)
        assert before - (taken - used) <= after <= before
        self.log[mark][1] = used

    @rule(seconds=st.sampled_from([0.125, 3.0, 10.0, 30.0, 61.5]))
    def wait(self, seconds):
        self.now += seconds

    @invariant()
    def never_over_in_any_span_that_ends_now(self):
        total = 0
        for at, units in reversed(self.log):
            total += units
            assert total <= self.gcra.limit * (1 + (self.now - at) / MINUTE) + 1e-6

    @invariant()
    def never_below_empty(self):
        assert 0 <= remaining(self.gcra, self.now) <= self.gcra.limit
        assert reset_s(self.gcra, self.now) >= 0


GcraMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestGcraMachine = GcraMachine.TestCase
