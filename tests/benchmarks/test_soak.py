"""What the soak makes of a curve."""

from __future__ import annotations

import pytest

from benchmarks.soak import Point, growth_mib


def curve(resident_mib):
    return [
        Point(count * 10_000, float(count), resident_mib(count * 10_000)) for count in range(101)
    ]


def test_what_only_warms_up_does_not_grow():
    assert growth_mib(curve(lambda done: 50 + min(done, 200_000) / 50_000)) == pytest.approx(0)


def test_two_bytes_a_request_are_told_as_nearly_two_mib_a_million():
    assert growth_mib(curve(lambda done: 50 + done * 2 / 2**20)) == pytest.approx(1e6 * 2 / 2**20)
