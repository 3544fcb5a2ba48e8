"""Any mix of clients, answers, faults, rests, cancellations and time: nobody is lost, nobody overtakes."""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router.errors import ApiError, FaultKind
from router.line import DEAD, Line, Place
from router.policy.breaker import State
from tests.gates import World, overload, quiet

MOST, QUEUE = 2, 6


class Lines(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World(most=MOST, queue=QUEUE, max_wait_s=30)
        self.tasks = []
        self.before = set()

    def turns(self):
        return [one for one in self.world.admission._waiting if not one.future.done()]

    def act(self, *steps):
        """Do something in the loop and let it have its effects; who is served then must have been first."""
        before = {one: one.lane for one in self.turns()}

        async def go():
            for step in steps:
                step()
            await quiet()

        self.loop.run_until_complete(go())
        stayed = [one for one in self.turns() if one in before and one.lane is before[one]]
        for one in before:
            target = self.given(one)
            if target is not None and target.breaker.state is not State.ADMITTING:
                continue  # in a panic each goes to the least bad of those that it hasn't tried
            for other in stayed:
                wanted = other.lane is not None and target in other.lane.targets
                assert not wanted or other.key > one.key, "overtaken"

    @staticmethod
    def given(turn):
        """The target that a wait ended with, if it did."""
        future = turn.future
        if not future.done() or future.cancelled() or future.exception() is not None:
            return None
        return future.result().target

    def held(self):
        return [(gate, at) for gate in self.world.gates.values() for at in range(len(gate.held))]

    @rule(
        model=st.sampled_from(["m", "n", "one"]),
        priority=st.sampled_from([-1, 0, 0, 0, 3]),
        count=st.integers(1, 4),
    )
    def come(self, model, priority, count):
        def start():
            for _ in range(count):
                self.tasks.append(self.world.ask(model, priority=priority))

        self.act(start)

    @precondition(lambda self: self.held())
    @rule(
        data=st.data(),
        kind=st.sampled_from(["good", "good", "broken", "rest", "overload"]),
        leaving=st.booleans(),
    )
    def end(self, data, kind, leaving):
        """An attempt ends; perhaps a client leaves in the same moment, or in that in which it is served."""
        gate, at = data.draw(st.sampled_from(self.held()))
        fault = {
            "good": None,
            "broken": overload(FaultKind.SERVER_ERROR),
            "rest": overload(retry_after_s=5),
            "overload": overload(),
        }[kind]
        steps = [lambda: gate.let(fault, at)]
        if leaving:
            rounds = data.draw(st.integers(0, 4))
            victim = data.draw(st.sampled_from(self.tasks))
            steps.append(lambda: self.loop.create_task(self.leave(victim, rounds)))
        self.act(*steps)

    @staticmethod
    async def leave(task, rounds):
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data):
        self.act(data.draw(st.sampled_from(self.tasks)).cancel)

    @rule(seconds=st.sampled_from([0.05, 1, 5, 20]))
    def wait(self, seconds):
        self.act(lambda: self.world.clock.advance(seconds))

    @rule(name=st.sampled_from("abc"))
    def go_down_or_up(self, name):
        target = self.world.target(name)

        def flip():
            target.available = not target.available
            target.freed(self.world.clock.now())

        self.act(flip)

    @invariant()
    def bounds_hold(self):
        for name, gate in self.world.gates.items():
            assert len(gate.held) <= MOST
            assert self.world.target(name).inflight == len(gate.held)
        waiting = self.turns()
        for name in ("m", "n", "one"):
            line = self.world.pool.route(name).line
            assert line.waiting == sum(turn.line is line for turn in waiting) <= QUEUE
            assert line.waiting == sum(line.counts.values()) == len(line.places())
            assert sum(lane.waiting for lane in line.lanes.values()) <= line.waiting

    @invariant()
    def nobody_waits_for_what_is_free(self):
        now = self.world.clock.now()
        for turn in self.turns():
            assert not turn.route._whoever(now, turn.tried), f"{turn.key} could be served"

    @invariant()
    def everybody_who_waits_will_hear(self):
        for turn in self.turns():
            assert turn.timer is not None
            assert self.world.clock.now() < turn.until

    @invariant()
    def nobody_ended_badly(self):
        for task in self.tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                assert isinstance(task.exception(), ApiError)

    def teardown(self):
        try:
            self.end_all()
        finally:
            for task in self.tasks:
                task.cancel()
            self.loop.run_until_complete(quiet())
            self.loop.close()

    def end_all(self):
        for name in "abc":
            self.world.target(name).available = True
            self.world.target(name).freed(self.world.clock.now())
        for _ in range(500):
            if all(task.done() for task in self.tasks):
                break
            gates = [gate for gate in self.world.gates.values() if gate.held]
            self.act(*(gate.let for gate in gates), lambda: self.world.clock.advance(0.5))
        assert all(task.done() for task in self.tasks)
        self.nobody_ended_badly()
        self.world.assert_empty()
        assert self.world.clock.timers == 0


TestLines = Lines.TestCase
TestLines.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_those_who_left_dont_fill_the_memory():
    line = Line(10, 60)
    for number in range(1000):
        place = Place(line, 0, 0.0, number)
        line.join(place, 0.0)
        if number != 500:
            line.leave(place, 0.0, served=False)
    assert line.waiting == 1
    assert len(line._heap._entries) <= DEAD + 4
    assert line.last_after(Place(line, 0, 0.0, 0)) is None
