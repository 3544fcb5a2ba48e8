"""What a provider lets us do: against its own bucket, through garbage, and settled once."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulate.provider import Account, SimulatedProvider
from router.backends.http import limits
from router.config.schema import Provider
from router.counting import Need, charge, counts_of
from router.errors import IllegalMove
from router.policy.quota import FORGET_S, MINUTE_S, PAUSE_S, SILENT, Quota
from router.ratelimits import NOTHING_SPENT, Reading, Spent


def told(remaining, reset_s=None, limit=600, resource="requests", window=""):
    return Reading(resource, limit, remaining, reset_s, window)


def heard(*readings, now=0.0, counts="usage"):
    quota = Quota(counts)
    quota.hear(readings, now)
    return quota


ONE = Need(10, 10)


def left(quota, now, resource="requests"):
    return {one.resource: one.remaining for one in quota.gauges(now)}[resource]


# What is unknown costs nothing


def test_unknown_is_unlimited():
    quota = Quota()
    assert not quota.knows
    assert quota.wait_s(Need(10**9, 10**9), 0) == 0
    assert quota.headroom(0) == 1
    assert quota.gauges(0) == ()


def test_who_tells_nothing_is_counted_no_more_until_he_does():
    quota = Quota()
    late = quota.reserve(ONE, 0)
    for _ in range(SILENT):
        assert quota.counting
        quota.settle(quota.reserve(ONE, 0), Spent(10, 10), 1)
    assert not quota.counting
    assert quota.reserve(ONE, 0) is None
    quota.settle(late, Spent(10, 10), 2)
    quota.hear([told(5, 59.5)], 2)
    assert quota.counting
    assert left(quota, 2) == 5, "what was sent in the meantime isn't known"
    quota.settle(quota.reserve(ONE, 2), Spent(10, 10), 3)


def test_a_limit_that_is_not_told_for_an_hour_is_forgotten():
    quota = heard(told(0, 86_400, window="day"))
    assert quota.wait_s(ONE, 10) > 0
    quota.reserve(ONE, FORGET_S + 1)
    assert not quota.knows
    assert quota.wait_s(ONE, FORGET_S + 1) == 0


# A bucket


def test_a_response_shows_level_rate_and_when_it_is_whole():
    quota = heard(told(300, 30))
    (gauge,) = quota.gauges(0)
    assert (gauge.resource, gauge.limit, gauge.remaining, gauge.reset_s) == (
        "requests",
        600,
        300,
        30,
    )
    assert quota.headroom(0) == 0.5
    assert left(quota, 15) == 450
    assert left(quota, 30) == left(quota, 99) == 600


def test_what_is_empty_says_how_long_to_wait():
    quota = heard(told(0, 60))
    assert quota.wait_s(ONE, 0) == pytest.approx(0.1)
    assert quota.wait_s(ONE, 0.1) == 0
    quota.reserve(ONE, 0.1)
    assert quota.wait_s(ONE, 0.1) == pytest.approx(0.1)


def test_what_is_larger_than_the_limit_goes_when_all_of_it_is_there():
    quota = heard(told(900, 6, limit=1000, resource="tokens"))
    assert quota.wait_s(Need(10**6, 0), 0) == pytest.approx(6)
    assert quota.wait_s(Need(10**6, 0), 6) == 0


def test_a_remaining_that_equals_the_limit_or_a_reset_of_zero_leaves_the_rate_as_it_was():
    quota = heard(told(600, 0))
    assert quota.headroom(0) == 1
    quota.hear([told(100, 0)], 0)
    assert left(quota, 0) == 100
    assert left(quota, MINUTE_S / 2) == 400


def test_a_limit_that_changes_changes_at_once():
    quota = heard(told(300, 30))
    quota.hear([told(1100, 5, limit=1200)], 1)
    (gauge,) = quota.gauges(1)
    assert (gauge.limit, gauge.remaining) == (1200, 1100)


def test_each_resource_stands_for_itself():
    quota = heard(told(600, 0), told(0, 60, limit=6000, resource="tokens"))
    assert quota.headroom(0) == 0
    assert quota.wait_s(Need(80, 0), 0) == pytest.approx(80 * 1.25 * 0.998749 / 100, rel=0.01)
    quota.hear([told(599, 0.1)], 30)
    assert left(quota, 30, "tokens") == 3000, "headers of one say nothing of the other"


def test_limits_of_input_and_output_count_just_that():
    quota = heard(
        told(100, 60, limit=1000, resource="input_tokens"),
        told(50, 60, limit=1000, resource="output_tokens"),
    )
    quota.reserve(Need(30, 20), 0)
    assert left(quota, 0, "input_tokens") == 70
    assert left(quota, 0, "output_tokens") == 30


def test_what_says_no_reset_is_taken_for_a_minute():
    quota = heard(Reading("requests", None, 60), Reading("tokens", 100, 0, None, "second"))
    (requests, tokens) = quota.gauges(0)
    assert (requests.limit, requests.remaining) == (60, 60)
    assert tokens.resource == "tokens_second"
    assert tokens.reset_s == 1
    quota.hear([Reading("requests", None, 0)], 1)
    assert quota.wait_s(Need(1, 0), 1) == pytest.approx(1)


# A window that ends at once


def test_a_window_is_told_from_a_bucket_and_waited_for():
    quota = Quota()
    for now, remaining in ((0, 50), (20, 30), (40, 0)):
        quota.hear([told(remaining, 60 - now, limit=100)], now)
    assert quota.wait_s(ONE, 41) == pytest.approx(19)
    assert quota.headroom(59) == 0
    assert quota.wait_s(ONE, 60) == 0
    assert quota.headroom(60) == 1
    for _ in range(100):
        assert quota.wait_s(ONE, 61) == 0
        quota.reserve(ONE, 61)
    assert quota.wait_s(ONE, 61) > 50


def test_a_bucket_that_fills_is_no_window():
    quota = Quota()
    for now, remaining in ((0, 50), (20, 30), (40, 0), (50, 10)):
        quota.hear([told(remaining, (100 - remaining) * 0.6, limit=100)], now)
    assert quota.wait_s(Need(0, 0), 50) == 0
    assert left(quota, 56) == 20


# What a response can't know of


def test_what_was_sent_after_is_added_and_what_was_sent_before_is_not():
    quota = Quota()
    first, second = quota.reserve(Need(100, 0), 0), quota.reserve(Need(200, 0), 0)
    third = quota.reserve(Need(400, 0), 0)
    quota.hear([told(700, 18, limit=1000, resource="tokens")], 0, second)
    assert left(quota, 0, "tokens") == 300, "the third isn't in it"
    quota.hear([told(900, 6, limit=1000, resource="tokens")], 0, first)
    assert left(quota, 0, "tokens") == 300, "news of an older request are old"
    quota.hear([told(300, 42, limit=1000, resource="tokens")], 0, third)
    assert left(quota, 0, "tokens") == 300


def test_answers_under_way_are_still_to_be_charged():
    quota = Quota("usage")
    hold = quota.reserve(Need(100, 50), 0)
    quota.hear([told(900, 6, limit=1000, resource="tokens")], 0, hold)
    assert left(quota, 0, "tokens") == 850
    other = quota.reserve(Need(0, 0), 0)
    quota.settle(hold, Spent(100, 80), 0)
    assert left(quota, 0, "tokens") == 820
    quota.hear([told(900, 6, limit=1000, resource="tokens")], 0, other)
    assert left(quota, 0, "tokens") == 820, "that response was under way when the answer ended"
    quota.settle(other, Spent(1, 0), 0)
    last = quota.reserve(Need(0, 0), 0)
    quota.hear([told(820, 10.8, limit=1000, resource="tokens")], 0, last)
    assert left(quota, 0, "tokens") == 820, "this one knows of it"


def test_what_is_counted_at_admission_is_not_counted_twice():
    quota = Quota("max_tokens")
    hold = quota.reserve(Need(100, 30, 400), 0)
    quota.hear([told(500, 30, limit=1000, resource="tokens")], 0, hold)
    assert left(quota, 0, "tokens") == 500
    quota.settle(hold, Spent(100, 30), 0)
    assert left(quota, 0, "tokens") == 500, "nothing is given back"


# Refusals


def test_a_refusal_that_says_nothing_pauses_longer_each_time_until_an_answer():
    quota, now = Quota(), 0.0
    for pause in (1, 2, 4):
        quota.refused(now, None, told=False)
        assert quota.wait_s(ONE, now) == pause * PAUSE_S
        assert quota.headroom(now) == 0
        now = quota.closed_until
    assert quota.wait_s(ONE, now) == 0
    quota.settle(quota.reserve(ONE, now), Spent(1, 1), now)
    quota.refused(now, None, told=False)
    assert quota.wait_s(ONE, now) == PAUSE_S


def test_a_burst_of_refusals_is_one():
    quota = Quota()
    for now in (0.0, 0.1, 0.2):
        quota.refused(now, None, told=False)
    assert quota.closed_until == PAUSE_S


def test_a_refusal_without_headers_empties_the_scarcest_limit():
    quota = heard(told(300, 30), told(900, 6, limit=1000, resource="tokens"))
    quota.refused(0, 5.0, told=False)
    assert left(quota, 0) == 0
    assert left(quota, 0, "tokens") == 900


def test_a_refused_request_has_taken_nothing():
    quota = heard(told(500, 30, limit=1000, resource="tokens"))
    hold = quota.reserve(Need(400, 0), 0)
    assert left(quota, 0, "tokens") == 100
    quota.settle(hold, NOTHING_SPENT, 0)
    assert left(quota, 0, "tokens") == 500


def test_refusals_raise_what_is_asked_for_and_answers_lower_it():
    quota = heard(told(0, 60, limit=6000, resource="tokens"))
    before = quota.wait_s(Need(1000, 0), 0)
    quota.refused(0, 1.0, told=True)
    raised = quota.wait_s(Need(1000, 0), 0)
    assert raised == pytest.approx(before * 1.2)
    for _ in range(500):
        quota.hear([told(0, 60, limit=6000, resource="tokens")], 0)
    assert quota.wait_s(Need(1000, 0), 0) == pytest.approx(10), "never less than it needs"


# Once, never negative, never an exception


def test_a_hold_is_settled_exactly_once():
    quota = Quota()
    hold = quota.reserve(ONE, 0)
    quota.settle(hold, None, 0)
    with pytest.raises(IllegalMove):
        quota.settle(hold, None, 0)


def _sums(quota):
    return quota._unknown, quota._later, len(quota._open)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3000), st.integers(0, 2000)), max_size=60),
       st.sampled_from(["usage", "uncached", "max_tokens", "input"]))  # fmt: skip
def test_whatever_happens_counts_come_back_to_nothing(story, counts):
    quota, now, holds = Quota(counts), 0.0, []
    for act, one, two in story:
        now += one / 1000
        if act <= 1:
            holds.append(quota.reserve(Need(one, two, two if act else None), now))
        elif act == 2 and holds:
            reading = told(min(two, 1000), one / 50, limit=1000, resource="tokens")
            quota.hear([reading], now, holds[one % len(holds)])
        elif act == 3 and holds:
            quota.settle(holds.pop(one % len(holds)), Spent(one, two, one // 2), now)
        elif act == 4 and holds:
            hold = holds.pop(0)
            quota.refused(now, None if two % 2 else 0.5, told=False)
            quota.settle(hold, NOTHING_SPENT, now)
        for sums in (quota._unknown, quota._later):
            assert min(sums) >= 0
        assert all(0 <= gauge.remaining <= gauge.limit for gauge in quota.gauges(now))
        assert 0 <= quota.headroom(now) <= 1
        assert quota.wait_s(ONE, now) >= 0
    for hold in holds:
        if hold is not None:
            quota.settle(hold, None, now)
    last = quota.reserve(Need(0, 0), now)
    if last is not None:
        quota.hear([told(1, 1)], now, last)
        quota.settle(last, Spent(0, 0), now)
        assert quota._unknown == [0, 0, 0, 0]
        assert not quota._open
        ended = [charge for _, charge in quota._ended]
        assert quota._later == [sum(one.later[kind] for one in ended) for kind in range(4)]


NUMBERS = st.one_of(st.none(), st.integers(-(2**70), 2**70))
TIMES = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


RESOURCES = st.sampled_from(["requests", "tokens", "output_tokens"])


@given(st.lists(st.tuples(RESOURCES, NUMBERS, NUMBERS, TIMES), max_size=20))
def test_nonsense_never_raises_and_leaves_finite_numbers(readings):
    quota = Quota()
    for now, (resource, limit, remaining, reset_s) in enumerate(readings):
        quota.hear([Reading(resource, limit, remaining, reset_s)], float(now))
        hold = quota.reserve(ONE, now)
        assert math.isfinite(quota.wait_s(ONE, now))
        assert 0 <= quota.headroom(now) <= 1
        quota.settle(hold, Spent(5, 5), now)


GAPS, LATENCIES = st.sampled_from([0.0, 0.01, 0.5, 3.0]), st.sampled_from([0.01, 0.3, 4.0])


@settings(max_examples=200)
@given(
    st.integers(600, 6000), st.integers(2500, 4000), st.integers(5, 60),
    st.lists(st.tuples(GAPS, st.integers(1, 1500), st.integers(1, 500), LATENCIES), max_size=40),
)  # fmt: skip
def test_never_more_than_the_providers_own_bucket(rpm, most, burst_s, requests):
    """Sizes are exact, nothing is asked for beyond them, and responses come late and in any order. Headers count in
    whole units, so that a bucket may be missed by one, and by the error of the rate that this makes.
    """
    provider = SimulatedProvider(
        Account(rpm, most * 60 // burst_s, burst_s),
        random.Random(1),
        counts="max_tokens",
        tells=True,
    )
    quota, now, late = Quota("max_tokens"), 0.0, []
    quota.hear(limits.read(provider.ask(most // 10, 1, now).headers, now), now)
    for gap, input_tokens, output_tokens, latency in requests:
        need = Need(input_tokens, output_tokens, output_tokens)
        quota._slack = 1.0
        now += gap
        now += quota.wait_s(need, now)
        for due, hold, headers, spent in sorted(late, key=lambda one: one[0]):
            if due <= now:
                quota.hear(limits.read(headers, due), due, hold)
                quota.settle(hold, spent, due)
        late = [one for one in late if one[0] > now]
        now += quota.wait_s(need, now)
        hold = quota.reserve(need, now)
        asked = (provider._requests, 1), (provider._tokens, input_tokens + output_tokens)
        missing = [
            bucket.used(now) + min(units, bucket.limit) - bucket.limit for bucket, units in asked
        ]
        assert all(
            lacks <= 1 + 0.01 * bucket.limit
            for lacks, (bucket, _) in zip(missing, asked, strict=True)
        )
        answer = provider.ask(input_tokens, output_tokens, now)
        spent = Spent(input_tokens, output_tokens)
        if answer.status == 429:
            spent = NOTHING_SPENT
        late.append((now + latency, hold, answer.headers, spent))


# How providers count


def test_how_providers_count():
    assert charge("usage", 100, 20, 50).at_once[1] == 100
    assert charge("usage", 100, 20, 50).later[1] == 20
    assert charge("uncached", 100, 20, 50, cached=60).at_once[1:3] == (40, 40)
    assert charge("max_tokens", 100, 20, 50).at_once[1] == 150
    assert charge("max_tokens", 100, 20, None).at_once[1] == 120
    assert charge("max_tokens", 100, 20, 50).later == (0, 0, 0, 20)
    assert charge("input", 100, 20, 50).later[1] == 0


@pytest.mark.parametrize(
    ("url", "counts"),
    [
        ("https://api.openai.com/v1", "max_tokens"),
        ("https://me.openai.azure.com/openai/v1", "max_tokens"),
        ("https://api.groq.com/openai/v1", "uncached"),
        ("https://notopenai.com/v1", "usage"),
        ("http://10.0.0.7:8000/v1", "usage"),
    ],
)
def test_how_a_host_is_known_to_count(url, counts):
    assert counts_of(Provider(base_url=url)) == counts
    assert counts_of(Provider(base_url=url, counts="input")) == "input"
