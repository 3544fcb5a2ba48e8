"""Go's durations."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.accounts.durations import go_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.0001, "1ms"), (0.012, "12ms"), (0.9999, "1s"), (1, "1s"), (1.5, "1.5s"), (6.123, "6.123s"),
        (59.9995, "1m0s"), (60, "1m0s"), (360, "6m0s"), (864, "14m24s"), (3600, "1h0m0s"), (3723, "1h2m3s"),
        (86_400, "24h0m0s"), (90.25, "1m30.25s"), (-3, "0s"), (10, "10s"), (100, "1m40s"),
    ],
)  # fmt: skip
def test_as_go_prints_them(seconds, text):
    assert go_duration(seconds) == text


UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


@given(st.floats(0, 1e6))
def test_never_a_wait_too_short_and_never_a_millisecond_too_long(seconds):
    parts = re.findall(r"([0-9.]+)(ms|h|m|s)", go_duration(seconds))
    ms = sum(float(number) * UNITS_MS[unit] for number, unit in parts)
    assert seconds * 1000 - 1e-6 <= ms < seconds * 1000 + 1 + 1e-6
