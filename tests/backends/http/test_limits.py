"""Headers of limits, as providers write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.backends.http.limits import read
from router.ratelimits import Reading

DATE = {"date": "Thu, 21 Aug 2025 12:41:00 GMT"}
OPENAI = {
    "x-ratelimit-limit-requests": "5000", "x-ratelimit-remaining-requests": "4999",
    "x-ratelimit-reset-requests": "12ms", "x-ratelimit-limit-tokens": "160000",
    "x-ratelimit-remaining-tokens": "159976", "x-ratelimit-reset-tokens": "6m0s",
    "x-ratelimit-limit-tokens_usage_based": "1", "x-ratelimit-remaining-project-tokens": "2",
}  # fmt: skip
ANTHROPIC = {
    "anthropic-ratelimit-requests-limit": "1000", "anthropic-ratelimit-requests-remaining": "999",
    "anthropic-ratelimit-requests-reset": "2025-08-21T12:41:01Z",
    "anthropic-ratelimit-input-tokens-limit": "80000", "anthropic-ratelimit-input-tokens-remaining": "70000",
    "anthropic-ratelimit-input-tokens-reset": "2025-08-21T12:41:07Z",
    "anthropic-ratelimit-output-tokens-remaining": "16000",
    "anthropic-ratelimit-unified-status": "allowed",
}  # fmt: skip


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (OPENAI, [Reading("requests", 5000, 4999, 0.012), Reading("tokens", 160_000, 159_976, 360)]),
        (
            {"x-ratelimit-remaining-tokens": "14", "x-ratelimit-reset-tokens": "2m59.56s"},
            [Reading("tokens", None, 14, 179.56)],
        ),
        (
            {"x-ratelimit-remaining-requests": "19", "x-ratelimit-remaining-tokens": "19913"},
            [Reading("requests", None, 19), Reading("tokens", None, 19_913)],
        ),
        (
            {**ANTHROPIC, **DATE},
            [
                Reading("requests", 1000, 999, 1.0),
                Reading("input_tokens", 80_000, 70_000, 7.0),
                Reading("output_tokens", None, 16_000),
            ],
        ),
        (
            {
                "x-ratelimit-limit-tokens-minute": "5000000",
                "x-ratelimit-remaining-tokens-minute": "4999911",
                "x-ratelimit-tokens-query-cost": "52",
                "x-ratelimit-limit-req-minute": "720",
                "x-ratelimit-remaining-req-minute": "717",
            },
            [Reading("tokens", 5_000_000, 4_999_911), Reading("requests", 720, 717)],
        ),
        (
            {
                "x-ratelimit-limit-requests-day": "10000",
                "x-ratelimit-remaining-requests-day": "9500",
                "x-ratelimit-reset-requests-day": "33011.382867",
            },
            [Reading("requests", 10_000, 9500, 33_011.382867, "day")],
        ),
        (
            {
                "x-ratelimit-limit-tokens-prompt": "7200000",
                "x-ratelimit-remaining-tokens-prompt": "7193993",
                "x-ratelimit-remaining-tokens-generated": "69338",
                "x-ratelimit-limit-tokens-cache-adjusted-prompt": "1",
            },
            [
                Reading("input_tokens", 7_200_000, 7_193_993),
                Reading("output_tokens", None, 69_338),
            ],
        ),
        (
            {"x-ratelimit-limit": "20", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "1755780080000", **DATE},
            [Reading("requests", 20, 0, 20.0)],
        ),
        ({"x-ratelimit-reset": "1755780080", **DATE}, [Reading("requests", None, None, 20.0)]),
        (
            {"x-tokenlimit-limit": "3000", "x-tokenlimit-remaining": "2900"},
            [Reading("tokens", 3000, 2900, None, "second")],
        ),
        (
            {"ratelimit": '"default";r=50;t=30', "ratelimit-policy": '"default";q=100;w=60'},
            [Reading("requests", 100, 50, 30.0)],
        ),
        (
            {
                "ratelimit": '"daily";r=1;t=9, "tokens";r=2;t=8',
                "ratelimit-policy": '"daily";q=5;w=86400,"tokens";q=6;w=1',
            },
            [Reading("requests", 5, 1, 9.0, "day"), Reading("tokens", 6, 2, 8.0, "second")],
        ),
        ({"ratelimit": "limit=100, remaining=50, reset=5"}, [Reading("requests", 100, 50, 5.0)]),
        (
            {"ratelimit-limit": "100, 100;w=60", "ratelimit-remaining": "5", "ratelimit-reset": "7"},
            [Reading("requests", 100, 5, 7.0)],
        ),
        ({"x-ratelimit-limit-requests": "-1", "x-ratelimit-reset-requests": "soon"}, []),
        ({"x-ratelimit-over-limit": "no", "x-request-id": "1"}, []),
    ],
)  # fmt: skip
def test_what_providers_write(headers, expected):
    assert list(read(headers, 0.0)) == expected


def test_a_time_without_a_date_is_compared_with_our_clock():
    reset = {"anthropic-ratelimit-requests-reset": "2025-08-21T12:41:07Z", "date": "whenever"}
    (reading,) = read(reset, 1_755_780_060.0)
    assert reading.reset_s == 7.0
    (past,) = read(reset, 2e9)
    assert past.reset_s == 0.0


NAMES = st.sampled_from(
    [*OPENAI, *ANTHROPIC, "ratelimit", "ratelimit-policy", "x-ratelimit-reset", "date"]
)
VALUES = st.one_of(
    st.text(max_size=40),
    st.from_regex(r"[0-9a-z.:;,=\"TZ+-]{0,40}", fullmatch=True),
    st.sampled_from(["9" * 400, "1e999", "nan", "inf", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"]),
)  # fmt: skip


@given(st.dictionaries(NAMES, VALUES), st.floats(0, 1e11))
def test_garbage_never_raises(headers, wall):
    for reading in read(headers, wall):
        assert reading.limit is None or reading.limit >= 0
        assert reading.reset_s is None or reading.reset_s >= 0
