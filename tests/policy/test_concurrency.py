"""The learned limit, the pace of a line, and who is shed: exact, in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy.concurrency import BACKOFF, FORGET_S, Concurrency
from router.policy.drain import GUESS_S, Drain
from router.policy.shedding import shed_probability


def learned(inflight=10, now=0.0):
    limit = Concurrency()
    limit.overloaded(now - 1, inflight, now)
    return limit


def answer(limit, count, now):
    """``count`` good answers with the limit in full use."""
    for _ in range(count):
        limit.succeeded(now, int(limit.limit), now)


def test_nothing_is_limited_until_the_first_refusal():
    limit = Concurrency()
    assert limit.limit == float("inf")
    assert not limit.learned
    limit.overloaded(0, 10, 1)
    assert limit.limit == 10 * BACKOFF
    assert limit.learned


def test_a_burst_finds_the_capacity_in_one_round():
    limit = Concurrency()
    for refused in range(990):
        limit.overloaded(0, 1000 - refused, 1 + refused / 1000)
    assert limit.limit == 10


def test_a_refusal_of_the_next_round_cuts_again():
    limit = learned(10, now=5)
    limit.overloaded(6, 7, 7)
    assert limit.limit == 7 * BACKOFF


def test_it_never_falls_below_one():
    limit = Concurrency()
    for at in range(20):
        limit.overloaded(at, 1, at)
    assert limit.limit == 1


def test_it_grows_by_one_a_round_and_the_step_doubles():
    limit = learned(10)
    answer(limit, 7, 1)
    assert limit.limit == pytest.approx(8, abs=0.1)
    answer(limit, 8, 1)
    assert limit.limit == pytest.approx(10, abs=0.3)


def test_a_cut_that_was_far_too_deep_is_made_good_in_few_rounds():
    limit = learned(2)
    answers = 0
    while limit.limit < 100:
        answer(limit, 1, 1)
        answers += 1
    assert answers < 250


def test_answers_to_requests_of_before_the_cut_dont_count():
    limit = learned(10, now=5)
    limit.succeeded(4, 7, 6)
    assert limit.limit == 7


def test_a_limit_that_isnt_used_doesnt_grow():
    limit = learned(10)
    limit.succeeded(1, 3, 2)
    assert limit.limit == 7


def test_it_is_forgotten_after_a_while_without_need():
    limit = learned(10, now=0)
    limit.succeeded(1, 1, FORGET_S - 1)
    assert limit.learned
    limit.entered(1, FORGET_S)
    assert not limit.learned


def test_it_is_not_forgotten_while_it_is_used():
    limit = learned(10, now=0)
    limit.entered(7, FORGET_S + 1)
    limit.succeeded(1, 7, FORGET_S + 1)
    assert limit.learned
    limit.entered(1, FORGET_S + 2)
    assert limit.learned
    limit.entered(1, 2 * FORGET_S + 1)
    assert not limit.learned


def test_a_cap_holds_whatever_is_learned_or_forgotten():
    limit = Concurrency()
    limit.cap(None)
    limit.cap(8)
    limit.cap(12)
    assert limit.limit == 8
    assert not limit.learned
    limit.overloaded(0, 8, 1)
    assert limit.learned
    answer(limit, 1000, 2)
    assert limit.limit == 8
    limit.overloaded(3, 8, 4)
    limit.forget()
    assert limit.limit == 8


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["over", "good", "enter"]), st.integers(1, 50), st.floats(0, 100)
        ),
        max_size=60,
    ),
    st.none() | st.integers(1, 20),
)
def test_it_stays_between_one_and_its_cap(moves, most):
    limit, now = Concurrency(), 0.0
    limit.cap(most)
    for kind, inflight, pause in moves:
        since, now = now, now + pause
        if kind == "over":
            limit.overloaded(since, inflight, now)
        elif limit.learned and kind == "good":
            limit.succeeded(since, inflight, now)
        elif limit.learned:
            limit.entered(inflight, now)
        assert 1 <= limit.limit <= (most or float("inf"))


def test_a_place_takes_a_guess_before_anybody_was_served():
    drain = Drain()
    drain.begin(100)
    assert drain.place_s(100) == GUESS_S
    assert drain.place_s(110) > 8


def test_a_place_takes_what_it_took():
    drain = Drain()
    drain.begin(0)
    for tenth in range(1, 1001):
        drain.served(tenth / 10)
    assert drain.place_s(100) == pytest.approx(0.1, rel=0.05)


def test_standing_still_slows_the_pace_and_an_empty_line_doesnt():
    drain = Drain()
    drain.begin(0)
    for second in range(1, 61):
        drain.served(second)
    pace = drain.place_s(60)
    assert pace == pytest.approx(1, rel=0.05)
    assert drain.place_s(120) > 4 * pace
    drain.end(60)
    assert drain.place_s(1000) == pace
    drain.begin(1000)
    assert drain.place_s(1000) == pace


def test_only_a_long_line_sheds():
    chances = [shed_probability(waiting, 100) for waiting in range(101)]
    assert chances == sorted(chances)
    assert chances[0] == 0
    assert chances[10] < 0.01
    assert chances[20] == pytest.approx(0.096)
    assert chances[32] == 1
