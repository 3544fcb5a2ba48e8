"""A share that grows, and is whole in the end."""

from __future__ import annotations

import pytest

from router.policy.slow_start import FLOOR, SlowStart


class Place:
    def __init__(self):
        self.part = 1.0

    def warm(self, part):
        self.part = part


def parts(start, place, seconds):
    found = []
    for now in seconds:
        start.update(now)
        found.append(place.part)
    return found


def test_the_share_grows_in_a_line_from_a_tenth():
    start, place = SlowStart(30), Place()
    start.begin([place], 100.0)
    assert place.part == FLOOR
    assert parts(start, place, [101, 103, 115, 129.7]) == pytest.approx([0.1, 0.1, 0.5, 0.99])
    assert start.places
    assert parts(start, place, [130]) == [1.0]
    assert not start.places, "nobody is left to be updated"


def test_aggression_gives_more_early():
    start, place = SlowStart(100, aggression=2), Place()
    start.begin([place], 0.0)
    assert parts(start, place, [4, 25, 100]) == pytest.approx([0.2, 0.5, 1])


def test_who_comes_back_a_second_time_begins_anew():
    start, place, other = SlowStart(30), Place(), Place()
    places = [place]
    start.begin(places, 0.0)
    start.begin([other], 10.0)
    start.begin(places, 20.0)
    assert parts(start, place, [20, 35]) == pytest.approx([0.1, 0.5])
    assert other.part == pytest.approx(25 / 30)


def test_no_ramp_is_no_slow_start():
    start, place = SlowStart(0), Place()
    start.begin([place], 0.0)
    assert place.part == 1.0
    assert not start.places
