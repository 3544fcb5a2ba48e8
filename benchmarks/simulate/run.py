"""One load, one policy, one seed: arrivals and engines on a virtual clock, the router's own objects in between."""

from __future__ import annotations

import random
from heapq import heapify, heappop, heappush

import msgspec

from benchmarks.simulate.engine import Happened, Job, SimulatedEngine
from benchmarks.simulate.gpu import Gpu
from benchmarks.simulate.load import Load, Request, arrivals
from benchmarks.simulate.replicas import Replicas, Synchronised
from engines.specs import SimulatedSpec
from router.config.schema import Config, Model, Policy, Target
from router.load import Facts
from router.policy.breaker import Verdict
from router.pool import Pool, Refusal, build
from router.target import Lease

MODEL = "simulated"


class Fleet(msgspec.Struct, frozen=True):
    """The engines: all of one class, each with its speed."""

    gpu: Gpu
    speeds: tuple[float, ...]
    replicas: Replicas = Replicas()


class Served(msgspec.Struct, frozen=True):
    """How one request went; times in seconds, infinite where it was never served."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int
    ttft_s: float
    tpot_s: float
    engine: int
    at: float = 0.0
    """When it came."""


NEVER = float("inf")


class Simulation:
    """The state of a run."""

    def __init__(self, fleet: Fleet, load: Load, policy: Policy, seed: int) -> None:
        names = [f"engine{i}" for i in range(len(fleet.speeds))]
        self.pools = [
            _pool(fleet, names, policy, load.block_tokens, seed + i)
            for i in range(fleet.replicas.count)
        ]
        self._routes = [pool.routes[MODEL] for pool in self.pools]
        self._rng = random.Random(seed)
        self._synchronised = Synchronised(self.pools, fleet.replicas)
        self._number = {name: i for i, name in enumerate(names)}
        self._overhead_s = fleet.gpu.overhead_s
        self._engines = [SimulatedEngine(fleet.gpu, load.block_tokens, s) for s in fleet.speeds]
        self._open: dict[int, tuple[Request, Lease, int]] = {}
        self.served: list[Served] = []

    def run(self, requests: list[Request]) -> list[Served]:
        """Serve all of ``requests``, which are in order."""
        engines = self._engines
        agenda = [(engine.next_at, i) for i, engine in enumerate(engines)]
        heapify(agenda)
        for id_, request in enumerate(requests):
            due = self._synchronised.due(request.at)
            if due is not None:
                self._until(due, agenda)
                self._synchronised.sync()
            self._until(request.at, agenda)
            number = self._send(id_, request)
            if number is not None:
                heappush(agenda, (engines[number].next_at, number))
        self._until(NEVER, agenda)
        assert not self._open, "every request ends"
        return self.served

    def _until(self, now: float, agenda: list[tuple[float, int]]) -> None:
        engines = self._engines
        while agenda and agenda[0][0] < now:
            at, number = heappop(agenda)
            engine = engines[number]
            if engine.next_at != at:
                continue  # it was called for another time meanwhile
            self._settle(engine.advance(), at)
            heappush(agenda, (engine.next_at, number))

    def _send(self, id_: int, request: Request) -> int | None:
        route = self._routes[0] if len(self._routes) == 1 else self._rng.choice(self._routes)
        facts = None
        if route.wants_facts:
            facts = Facts(request.input_tokens, request.blocks)
        elif route.wants_size():
            facts = Facts(request.input_tokens)
        lease = route.lease(request.at, (), facts)
        assert not isinstance(lease, Refusal), "engines of a simulation don't fail"
        number = self._number[lease.target.id]
        job = Job(id_, request.input_tokens, request.output_tokens, request.blocks)
        if not self._engines[number].submit(job, request.at):
            lease.settle(Verdict.VOID, request.at)
            self.served.append(
                Served(
                    request.input_tokens, request.output_tokens, 0, NEVER, NEVER, number, request.at
                )
            )
            return None
        self._open[id_] = (request, lease, number)
        return number

    def _settle(self, happened: Happened, now: float) -> None:
        for job in happened.begun:
            self._open[job.id][1].first_token(now)
        for job in happened.finished:
            request, lease, number = self._open.pop(job.id)
            lease.settle(Verdict.GOOD, now, None, job.output)
            tpot = (now - job.first_at) / (job.output - 1) if job.output > 1 else 0.0
            ttft = job.first_at - request.at + self._overhead_s
            self.served.append(
                Served(job.input, job.output, job.cached, ttft, tpot, number, request.at)
            )


def simulate(fleet: Fleet, load: Load, policy: Policy, *, faster: float, seed: int) -> list[Served]:
    """How every request of ``load`` goes, at ``faster`` times its recorded rate."""
    return Simulation(fleet, load, policy, seed).run(list(arrivals(load, faster, seed)))


def _pool(fleet: Fleet, names: list[str], policy: Policy, block_tokens: int, seed: int) -> Pool:
    spec = SimulatedSpec(kv_tokens=fleet.gpu.kv_tokens, slots=fleet.gpu.slots)
    model = Model(targets=[Target(engine=name) for name in names], policy=policy)
    config = Config(engines=dict.fromkeys(names, spec), models={MODEL: model})
    pool = build(config, random.Random(seed), block_tokens)
    for target in pool.targets.values():
        target.load.costs = fleet.gpu.costs  # the class's: that some are slower must be found out
    return pool
