"""A dispatcher over backends that hold every request until a test lets it go."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

from router.backends.base import Facts, Limits
from router.config.schema import Config, Model, Provider, Queue, Retry, Target
from router.dispatch import Call, Dispatcher, Terms
from router.errors import Fault, FaultKind
from router.events import Queued
from router.pool import build
from router.wire.chat import ChatRequest, Message
from tests.clocks import ManualClock

TURNS = 12
"""Rounds of the loop after which whatever can happen without time has happened."""


class Gate:
    """A backend whose requests wait for `let`."""

    def __init__(self):
        self.held = []
        self.order = []
        self.most = 0

    async def open(self, order):
        held = asyncio.get_running_loop().create_future()
        self.held.append(held)
        self.order.append(order.request_id)
        self.most = max(self.most, len(self.held))
        try:
            return Whole(await held)
        finally:
            self.held.remove(held)

    def let(self, fault=None, at=0):
        """Let one request go, with an answer or with ``fault``."""
        held = self.held[at]
        if fault is None:
            held.set_result(b"ok")
        else:
            held.set_exception(fault)

    async def close(self):
        pass


class Whole:
    def __init__(self, piece):
        self.piece, self.facts, self.headers = piece, Facts(), {}

    async def read(self):
        piece, self.piece = self.piece, b""
        self.facts.finished = True
        return piece

    async def pour(self, sink, record=None):
        pass

    def close(self):
        pass


class World(SimpleNamespace):
    """Models ``m`` on a and b, ``n`` on b and c, ``one`` on a; at most ``most`` requests at each."""

    def __init__(self, most=1, queue=100, max_wait_s=60, attempts=3):
        def model(*names):
            return Model(
                targets=[
                    Target(provider=name, model="x", max_inflight=most or None) for name in names
                ],
                policy="least_inflight",
            )

        config = Config(
            providers={name: Provider(base_url="http://x.test/v1") for name in "abc"},
            models={"m": model("a", "b"), "n": model("b", "c"), "one": model("a")},
            queue=Queue(max=queue, max_wait_s=max_wait_s),
        )
        self.clock = ManualClock()
        self.pool = build(config)
        self.gates = {name: Gate() for name in "abc"}
        self.events = []
        terms = Terms(Limits(1, 10, 10), Limits(1, 300, 10), Retry(attempts=attempts))
        self.dispatcher = Dispatcher(
            self.gates, terms, clock=self.clock, rng=random.Random(1), emit=self.events.append
        )
        self.admission = self.dispatcher._admission

    def target(self, name):
        return self.pool.targets[f"{name}/x"]

    def call(self, model="one", name="?", priority=0, within_s=600):
        request = ChatRequest(model=model, messages=[Message("user", "hi")])
        now, route = self.clock.now(), self.pool.route(model)
        return Call(request, b"{}", route, name, "dev", now, now + within_s, priority=priority)

    def ask(self, *args, **fields):
        """A client that asks and reads its answer, as a task."""
        return asyncio.ensure_future(self._whole(self.call(*args, **fields)))

    async def _whole(self, call):
        reply = await self.dispatcher.open(call)
        try:
            pieces = b""
            while piece := await reply.read():
                pieces += piece
            return pieces
        finally:
            reply.close()

    def outcomes(self):
        return [event.outcome for event in self.events if isinstance(event, Queued)]

    def assert_empty(self):
        """Nothing is held anywhere."""
        assert [target.inflight for target in self.pool.targets.values()] == [0, 0, 0]
        assert all(not gate.held for gate in self.gates.values())
        assert not self.admission._waiting
        assert self.admission._turns.due_at == float("inf")
        for target in self.pool.targets.values():
            assert target.on_free is None
        for route in self.pool.routes.values():
            assert (route.line.waiting, route.line.lanes, route.line.places()) == (0, {}, ())
            assert set(route.line.counts.values()) <= {0}


async def quiet():
    """Let everything happen that needs no time."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


def overload(kind=FaultKind.RATE_LIMITED, **fields):
    return Fault(kind, "too many", **fields)
