"""A dispatcher over backends that do as they are told."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

from router.backends.base import Facts, Limits, Told
from router.config.schema import Config, Health, Model, Provider, Retry, Target
from router.dispatch import Call, Dispatcher, Terms
from router.eligible import Eligible
from router.errors import Fault, FaultKind
from router.pool import build
from router.wire.chat import ChatRequest, Message
from tests.clocks import ManualClock


class Script:
    """A backend that does what it is told, and remembers what was asked and closed."""

    def __init__(self, *acts):
        """Each a list of an answer's pieces, or what is raised; in turn, then the last for ever."""
        self.acts = list(acts)
        self.orders = []
        self.opened = self.closed = 0

    async def open(self, order):
        self.orders.append(order)
        await asyncio.sleep(0)
        act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
        if isinstance(act, Exception):
            raise act
        self.opened += 1
        return Pieces(self, act)

    async def close(self):
        pass


class Pieces:
    def __init__(self, owner, pieces):
        self.headers = {"x-from": "upstream"}
        self.owner, self.pieces, self.facts, self.open = owner, list(pieces), Facts(), True

    async def read(self):
        await asyncio.sleep(0)
        if not self.pieces:
            return b""
        piece = self.pieces.pop(0)
        if isinstance(piece, Exception):
            raise piece
        if not self.pieces:
            self.facts.finished = True
            self.facts.output_tokens = 7
        return piece

    async def pour(self, sink, record=None):
        pass

    def told(self):
        return Told(self.facts)

    def close(self):
        if self.open:
            self.open = False
            self.owner.closed += 1


class World(SimpleNamespace):
    """A dispatcher over scripted backends named a, b, c."""

    def __init__(
        self, *scripts, policy="round_robin", attempts=3, models=None, health=None, **retry
    ):
        """``models``: others beside m, by name; m has all scripts' backends unless it is among them."""
        names = "abc"[: len(scripts)]
        m = Model(targets=[Target(provider=name) for name in names], policy=policy)
        config = Config(
            providers={name: Provider(base_url="http://x.test/v1") for name in names},
            models={"m": m, **(models or {})},
            health=health or Health(failures=2, eject_s=30, slow_start_s=0),
        )
        self.clock = ManualClock()
        self.pool = build(config)
        self.scripts = dict(zip(names, scripts, strict=True))
        self.events = []
        terms = Terms(
            Limits(1, 10, 10),
            Limits(1, 300, 10),
            Retry(attempts=attempts, backoff_s=0.1, **retry),
            prompt_s_per_1k=1.0,
            narrow=Eligible(config).narrow,
        )
        self.dispatcher = Dispatcher(
            self.scripts, terms, clock=self.clock, rng=random.Random(1), emit=self.events.append
        )

    def call(self, body=b"{}", **fields):
        request = ChatRequest(model="m", messages=[Message("user", "hi")], **fields)
        now = self.clock.now()
        return Call(request, body, self.pool.route("m"), "req_1", "dev", now, now + 60)

    async def ask(self, **fields):
        """The whole answer's pieces."""
        reply = await self.dispatcher.open(self.call(**fields))
        pieces = []
        try:
            while piece := await reply.read():
                pieces.append(piece)
        finally:
            reply.close()
        return pieces

    def seen(self, kind):
        return [event for event in self.events if isinstance(event, kind)]

    def assert_balanced(self):
        assert [target.inflight for target in self.pool.targets.values()] == [0] * len(self.scripts)
        assert all(script.opened == script.closed for script in self.scripts.values())


def fault(kind=FaultKind.SERVER_ERROR, **fields):
    return Fault(kind, "it broke", **fields)
