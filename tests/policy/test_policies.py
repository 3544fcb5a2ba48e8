"""Shares, ties and members that come and go."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy.least_inflight import LeastInflight
from router.policy.round_robin import RoundRobin
from router.policy.weighted import Weighted


@dataclass
class Seat:
    order: int
    weight: float = 1
    inflight: int = 0


@pytest.fixture
def three():
    return [Seat(0), Seat(1), Seat(2)]


def test_round_robin_takes_everyone_in_turn(three):
    policy = RoundRobin()
    assert [policy.pick(three).order for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_round_robin_spreads_a_missing_members_share_evenly(three):
    policy = RoundRobin()
    picks = Counter(policy.pick([three[0], three[2]]).order for _ in range(100))
    assert picks == {0: 50, 2: 50}


def test_round_robin_gives_a_returning_member_one_turn_not_a_flood(three):
    policy = RoundRobin()
    for _ in range(50):
        policy.pick(three[:2])
    picks = [policy.pick(three).order for _ in range(4)]
    assert picks.count(2) <= 2
    assert picks[0] == 2


def test_weighted_interleaves_as_nginx_does():
    seats = [Seat(0, 5), Seat(1, 1), Seat(2, 1)]
    policy = Weighted()
    assert [policy.pick(seats).order for _ in range(7)] == [0, 0, 1, 0, 2, 0, 0]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_weighted_gives_each_exactly_its_share_in_a_full_turn(weights):
    seats = [Seat(i, w) for i, w in enumerate(weights)]
    policy = Weighted()
    picks = Counter(policy.pick(seats).order for _ in range(sum(weights)))
    assert [picks[i] for i in range(len(weights))] == weights


def test_least_inflight_picks_the_emptiest_for_its_weight():
    seats = [Seat(0, 1, 3), Seat(1, 1, 2), Seat(2, 4, 6)]
    assert LeastInflight().pick(seats).order == 2


def test_least_inflight_takes_turns_on_an_idle_pool(three):
    policy = LeastInflight()
    assert [policy.pick(three).order for _ in range(6)] == [0, 1, 2, 0, 1, 2]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=8))
def test_least_inflight_never_picks_a_busier_one(state):
    seats = [Seat(i, w, n) for i, (n, w) in enumerate(state)]
    chosen = LeastInflight().pick(seats)
    load = (chosen.inflight + 1) / chosen.weight
    assert all(load <= (seat.inflight + 1) / seat.weight for seat in seats)
