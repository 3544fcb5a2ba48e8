"""Retries: paid from a bucket, never more than it held."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy.retry_budget import KEEP_S, RetryBudget


def taken(budget, count, now):
    return sum(budget.take(now) for _ in range(count))


def test_a_full_bucket_is_ten_seconds_of_its_rate():
    budget = RetryBudget(0.2, 10, 5.0)
    assert taken(budget, 500, 5.0) == budget.burst == 10 * KEEP_S


def test_time_and_requests_fill_it_again():
    budget = RetryBudget(0.25, 10, 0.0)
    taken(budget, 100, 0.0)
    assert taken(budget, 100, 1.5) == 15
    for _ in range(40):
        budget.request()
    assert taken(budget, 100, 1.5) == 10
    assert taken(budget, 500, 1000.0) == 100, "but never over its brim"


@pytest.mark.parametrize("per_s", [0, 0.01])
def test_without_a_rate_the_share_alone_pays(per_s):
    budget = RetryBudget(0.5, per_s, 0.0)
    assert taken(budget, 9, 0.0) == 1
    budget.request()
    budget.request()
    assert taken(budget, 9, 0.0) == 1


def test_where_everything_fails_retries_stay_a_fifth():
    budget, retries = RetryBudget(0.2, 10, 0.0), 0
    for i in range(100_000):  # 1,000 a second
        budget.request()
        retries += budget.take(i / 1000)
    assert retries == pytest.approx(0.2 * 100_000 + 10 * 100 + 100, rel=0.01)


@given(
    share=st.sampled_from([0.0, 0.1, 0.2, 1.0]),
    per_s=st.sampled_from([0.0, 0.5, 3.0]),
    script=st.lists(
        st.tuples(st.sampled_from(["request", "take", "take"]), st.sampled_from([0, 0, 0.1, 1, 7])),
        max_size=80,
    ),
)
def test_never_over_in_any_span(share, per_s, script):
    budget = RetryBudget(share, per_s, 0.0)
    now, log = 0.0, []
    for what, pause in script:
        now += pause
        if what == "request":
            budget.request()
            log.append((now, "request"))
        elif budget.take(now):
            log.append((now, "take"))
    for first, (start, _) in enumerate(log):
        requests = retries = 0
        for at, what in log[first:]:
            requests += what == "request"
            retries += what == "take"
            assert retries <= budget.burst + per_s * (at - start) + share * requests + 1e-6
