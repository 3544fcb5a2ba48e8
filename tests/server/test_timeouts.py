"""A time limit that many have alike."""

import asyncio

from router.server.timeouts import Timeouts


class Loop:
    """What Timeouts asks of an event loop, on a clock that is moved by hand."""

    def __init__(self):
        self.now = 100.0
        self.timers = []

    def time(self):
        return self.now

    def call_at(self, when, call):
        self.timers.append((when, call))
        return object()

    def go(self, to):
        while self.timers and min(self.timers, key=lambda one: one[0])[0] <= to:
            first = min(self.timers, key=lambda one: one[0])
            self.timers.remove(first)
            self.now = first[0]
            first[1]()
        self.now = to


def setting(monkeypatch, limit_s=10.0):
    loop, late = Loop(), []
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    return loop, Timeouts(limit_s, lambda one: late.append((one, loop.now))), late


def test_each_is_late_at_its_own_moment_with_one_timer(monkeypatch):
    loop, timeouts, late = setting(monkeypatch)
    for one, at in (("a", 100.0), ("b", 103.0), ("c", 103.0), ("d", 109.0)):
        loop.go(at)
        timeouts.begin(one)
        assert len(loop.timers) == 1
    loop.go(200.0)
    assert late == [("a", 110.0), ("b", 113.0), ("c", 113.0), ("d", 119.0)]
    assert not timeouts.due
    assert not loop.timers


def test_who_ends_is_not_late_and_who_begins_anew_is_later(monkeypatch):
    loop, timeouts, late = setting(monkeypatch)
    for one in "abc":
        timeouts.begin(one)
    timeouts.end("a")
    timeouts.end("nobody")
    loop.go(104.0)
    timeouts.begin("b")
    loop.go(130.0)
    assert late == [("c", 110.0), ("b", 114.0)]


def test_who_is_late_may_begin_again_at_once(monkeypatch):
    loop, timeouts, late = setting(monkeypatch)

    def again(one):
        late.append((one, loop.now))
        if len(late) < 3:
            timeouts.begin(one)

    timeouts = Timeouts(5.0, again)
    timeouts.begin("a")
    loop.go(150.0)
    assert late == [("a", 105.0), ("a", 110.0), ("a", 115.0)]


def test_a_timer_waits_for_whoever_comes_after_all_have_ended(monkeypatch):
    loop, timeouts, late = setting(monkeypatch)
    timeouts.begin("a")
    timeouts.end("a")
    loop.go(150.0)
    assert not loop.timers
    timeouts.begin("b")
    loop.go(200.0)
    assert late == [("b", 160.0)]
