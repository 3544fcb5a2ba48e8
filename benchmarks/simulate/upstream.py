"""One load on accounts at providers: the router's own pool, policy, breakers and quotas on a virtual clock in between.

What `router.dispatch` does around them is done here alike: a refused request goes on to another target, at most so many
attempts; one that nobody can take waits in its router's queue, first come first served, until a target may. Bytes there
are none, but headers are written by the provider and read by the router's reader.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Literal

from msgspec import Struct

from benchmarks.simulate.load import Load, Request, arrivals
from benchmarks.simulate.provider import Account, Heard, SimulatedProvider
from benchmarks.simulate.replicas import Replicas, Synchronised
from router.backends.http import limits, refusal
from router.config.schema import Config, Counts, Model, Policy, Provider, Retry, Target
from router.load import Facts
from router.policy.breaker import Verdict
from router.pool import Refusal, build
from router.ratelimits import NOTHING_SPENT, Readings, Spent
from router.target import Lease
from router.target import Target as Somebody

Heeds = Literal["headers", "retry-after", "own-retry-after"]
MODEL = "simulated"
NEVER = float("inf")
BACKOFF_S = Retry().backoff_s
ATTEMPTS = Retry().attempts


class Accounts(Struct, frozen=True):
    """The providers, and what is known of them and of requests."""

    accounts: tuple[Account, ...]
    counts: Counts = "max_tokens"
    heeds: Heeds = "headers"
    """What the router goes by: headers of limits; no such headers, but a refusal's retry-after, for everybody; or that,
    for the refused request alone, which is what a client's own retries do.
    """
    size_error: float = 0.0
    """Requests are thought so much longer or shorter than they are, at most, as a share."""
    outage_s: float = 0.0
    """Each account fails once for so long, one after the other."""
    replicas: Replicas = Replicas()


class Outcome(Struct, frozen=True):
    """How one request went; times in seconds."""

    refusals: int
    """429s on its way."""
    answered: bool
    wait_s: float
    """From its arrival until it was sent where it was answered, or given up."""
    ttft_s: float
    """From its arrival."""


class _Walk:
    """One request under way."""

    __slots__ = ("attempts", "facts", "refusals", "request", "rest_s", "router", "sent_at", "tried")

    def __init__(self, request: Request, facts: Facts, router: int) -> None:
        self.request = request
        self.facts = facts
        self.router = router
        self.attempts = 0
        self.refusals = 0
        self.rest_s = 0.0
        """The shortest rest that those asked for who refused it, where nobody else heeds it."""
        self.sent_at = 0.0
        self.tried: set[Somebody] = set()


class UpstreamSimulation:
    """The state of a run."""

    def __init__(self, fleet: Accounts, policy: Policy, seed: int) -> None:
        self._rng = random.Random(seed)
        names = [f"account{i}" for i in range(len(fleet.accounts))]
        provider = Provider(base_url="http://simulated.test/v1", counts=fleet.counts)
        model = Model(targets=[Target(provider=name) for name in names], policy=policy)
        config = Config(providers=dict.fromkeys(names, provider), models={MODEL: model})
        self.pools = [build(config, random.Random(seed + i)) for i in range(fleet.replicas.count)]
        self._routes = [pool.routes[MODEL] for pool in self.pools]
        self._synchronised = Synchronised(self.pools, fleet.replicas)
        self._providers = {
            name: SimulatedProvider(
                account, self._rng, counts=fleet.counts, tells=fleet.heeds == "headers"
            )
            for name, account in zip(names, fleet.accounts, strict=True)
        }
        self._fleet = fleet
        self._agenda: list[tuple[float, int, Callable[[float], None]]] = []
        self._events = 0
        self._waiting: list[deque[_Walk]] = [deque() for _ in self._routes]
        self._wakes_at = [NEVER] * len(self._routes)
        self.outcomes: list[Outcome] = []

    def run(self, requests: Sequence[Request]) -> list[Outcome]:
        """Serve all of ``requests``, which are in order."""
        self._plan_outages(requests[-1].at)
        for request in requests:
            due = self._synchronised.due(request.at)
            if due is not None:
                self._until(due)
                self._synchronised.sync()
            self._until(request.at)
            self._arrive(request, request.at)
        self._until(NEVER)
        return self.outcomes

    def _plan_outages(self, span: float) -> None:
        count = len(self._providers)
        for number, provider in enumerate(self._providers.values()):
            start = span * (number + 0.5) / count
            provider.outages.append((start, start + self._fleet.outage_s))

    def _until(self, now: float) -> None:
        while self._agenda and self._agenda[0][0] <= now:
            at, _, act = heappop(self._agenda)
            act(at)

    def _at(self, when: float, act: Callable[[float], None]) -> None:
        self._events += 1
        heappush(self._agenda, (when, self._events, act))

    # A request's way

    def _arrive(self, request: Request, now: float) -> None:
        draw, error = self._rng.uniform, self._fleet.size_error
        known = max(1, round(request.input_tokens * draw(1 - error, 1 + error)))
        longest = None
        if self._fleet.counts == "max_tokens":
            longest = max(1, round(request.output_tokens * draw(1 - error, 1 + error)))
        router = self._rng.randrange(len(self._routes)) if len(self._routes) > 1 else 0
        walk = _Walk(request, Facts(known, (), longest), router)
        if self._waiting[router] or not self._send(walk, now):
            self._waiting[router].append(walk)

    def _send(self, walk: _Walk, now: float) -> bool:
        """Send it to whom the router chooses; False where nobody may take it, then the queue is called in time."""
        lease = self._routes[walk.router].lease(now, walk.tried, walk.facts)
        if isinstance(lease, Refusal):
            self._wake(walk.router, lease.retry_at)
            return False
        walk.attempts += 1
        walk.sent_at = now
        provider = self._providers[lease.target.backend]
        request = walk.request
        heard = provider.ask(request.input_tokens, request.output_tokens, now)
        self._at(now + heard.after_s, lambda at: self._hear(walk, lease, heard, at))
        return True

    def _hear(self, walk: _Walk, lease: Lease, heard: Heard, now: float) -> None:
        readings = limits.read(heard.headers, now) if heard.headers else ()
        if heard.status == 200:
            lease.hear(readings, now)
            lease.first_token(now)
            self._at(now + heard.rest_s, lambda at: self._end(walk, lease, now, at))
            return
        if heard.status == 429:
            self._refused(walk, lease, heard, readings, now)
        else:
            lease.settle(Verdict.BAD, now)
        walk.tried.add(lease.target)
        if walk.attempts >= ATTEMPTS:
            self.outcomes.append(Outcome(walk.refusals, False, now - walk.request.at, now))  # noqa: FBT003
        else:
            self._again(walk, now)

    def _refused(
        self, walk: _Walk, lease: Lease, heard: Heard, readings: Readings, now: float
    ) -> None:
        walk.refusals += 1
        after = refusal.retry_after_s(heard.headers, now)
        if self._fleet.heeds == "own-retry-after":
            walk.rest_s = min(walk.rest_s or NEVER, after or 0.0)
            after = None
        else:
            lease.refused(readings, now, after)
        lease.settle(Verdict.VOID, now, after, None, NOTHING_SPENT)

    def _again(self, walk: _Walk, now: float) -> None:
        """At another account; where all were tried, at any after a pause."""
        if len(walk.tried) < len(self._providers):
            if not self._send(walk, now):
                walk.tried.clear()
                self._waiting[walk.router].appendleft(walk)
            return
        walk.tried.clear()
        pause = self._rng.random() * BACKOFF_S * 2 ** (walk.attempts - 1)
        pause, walk.rest_s = max(pause, walk.rest_s), 0.0
        self._at(now + pause, lambda at: self._retry(walk, at))

    def _retry(self, walk: _Walk, now: float) -> None:
        if not self._send(walk, now):
            self._waiting[walk.router].appendleft(walk)

    def _end(self, walk: _Walk, lease: Lease, first_at: float, now: float) -> None:
        request = walk.request
        self._providers[lease.target.backend].ended(request.output_tokens, now)
        spent = Spent(request.input_tokens, request.output_tokens)
        lease.settle(Verdict.GOOD, now, None, request.output_tokens, spent)
        self.outcomes.append(
            Outcome(walk.refusals, True, walk.sent_at - request.at, first_at - request.at)  # noqa: FBT003
        )

    # The queue

    def _wake(self, router: int, when: float) -> None:
        if when < self._wakes_at[router]:
            self._wakes_at[router] = when
            self._at(when, lambda at: self._serve(router, at))

    def _serve(self, router: int, now: float) -> None:
        """Send those who wait, in their order, as far as they may be."""
        if self._wakes_at[router] != now:
            return  # it was called for another time meanwhile
        self._wakes_at[router] = NEVER
        waiting = self._waiting[router]
        while waiting and self._send(waiting[0], now):
            waiting.popleft()


def simulate(
    fleet: Accounts, load: Load, policy: Policy, *, faster: float, seed: int
) -> list[Outcome]:
    """How every request of ``load`` goes, at ``faster`` times its recorded rate."""
    return UpstreamSimulation(fleet, policy, seed).run(arrivals(load, faster, seed))
