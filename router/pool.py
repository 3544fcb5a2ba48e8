"""Who may serve a request, and who does. Pure: state, arguments and ``now`` in, a lease or a refusal out.

While somebody admits, the policy chooses among those. Where nobody does because all are ejected, they serve all the
same (panic), the least bad first: a guess beats a certain error, and it is how a pool of one comes back. Who asked
for rest (429 with retry-after) gets it, panic or not.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar, final

import msgspec

from engines.base import WorkCosts
from engines.specs import EngineSpec, ExLlamaSpec, LlamaCppSpec, SimulatedSpec
from router.config.schema import Config, Health, Model, Queue
from router.config.schema import Policy as PolicyName
from router.counting import Need, counts_of
from router.decisions import Choice, Decisions, Wait
from router.line import Line
from router.load import NOTHING, UNKNOWN, Costs, Demand, Facts, Load, MeanOutput
from router.member import Member
from router.policy import C, Policy, Rotation
from router.policy.breaker import Breaker, Cohort, SuccessRate
from router.policy.cache_aware import CacheAware
from router.policy.expected_cost import ExpectedCost
from router.policy.headroom import Headroom
from router.policy.least_inflight import LeastInflight
from router.policy.least_tokens import LeastTokens
from router.policy.lmetric import LMetric
from router.policy.local_first import LocalFirst
from router.policy.power_of_two import PowerOfTwo
from router.policy.quota import Hold, Quota
from router.policy.round_robin import RoundRobin
from router.policy.slow_start import SlowStart
from router.policy.weighted import Weighted
from router.prefix import PrefixIndex, by_slot
from router.target import ADMITTING, Lease, Target

POLICIES: Mapping[PolicyName, Callable[[Model], Policy | Rotation]] = {
    "round_robin": lambda _: RoundRobin(),
    "weighted": lambda _: Weighted(),
    "least_inflight": lambda _: LeastInflight(),
    "least_tokens": lambda _: LeastTokens(),
    "power_of_two": lambda _: PowerOfTwo(),
    "lmetric": lambda _: LMetric(),
    "cache_aware": lambda _: CacheAware(),
    "expected_cost": lambda _: ExpectedCost(),
    "local_first": lambda model: LocalFirst(ExpectedCost(), Headroom(), model.spill_s),
    "headroom": lambda _: Headroom(),
}

MANY = 32
"""Past so many members a policy that scores them one by one is shown a sample: its time must not grow with the pool."""
SAMPLE = 16
"""The best of 16 at random is among the best 6 % of the pool on average."""
HOLDERS = 4
"""Members with the longest cached beginning that are shown besides: one for the cache, others where that is busy."""

NO_NEED = Need(0, 0)
"""Of a route without providers."""
NOBODY: Sequence[tuple[int, int]] = ()
"""Who holds something of a prompt that nothing can be said of."""
RESTART_GUESS_S = 1.0
"""An engine that went down is usually back after one restart; a client that waits so long is well served."""


class Fallbacks(msgspec.Struct, frozen=True):
    """Other models' routes that may answer, in order, by what befell this one."""

    failed: tuple[Route, ...] = ()
    too_long: tuple[Route, ...] = ()
    filtered: tuple[Route, ...] = ()

    @property
    def all(self) -> tuple[Route, ...]:
        """Each of them, whatever it is for."""
        return (*self.failed, *self.too_long, *self.filtered)


NO_FALLBACKS = Fallbacks()


@final
class Refusal(msgspec.Struct, frozen=True):
    """Nobody can take the request."""

    reason: Wait
    """``all_tried``; ``resting``: those left asked to be left alone; ``full``: some of those left have as many as
    they may have; ``quota``: their limits don't let the request through yet; ``unavailable``: no process is up.
    """
    retry_at: float
    """When somebody may, in monotonic seconds; infinite where only an answer's end can tell."""


class Shared(msgspec.Struct, frozen=True):
    """What all routes of a pool have in common."""

    index: PrefixIndex
    rng: random.Random
    slow_start: SlowStart
    guarded: set[Target]
    """See `router.target`."""
    queue: Queue = Queue()


class Sole:
    """The policy of a model with one target."""

    wants_facts: ClassVar[bool] = False

    def pick(self, candidates: Sequence[C], demand: Demand, now: float, rng: random.Random) -> C:  # noqa: ARG002
        """The one."""
        return candidates[0]


class Route:
    """A model that clients ask for: its members and how one is chosen."""

    __slots__ = (
        "_by_slot",
        "_chooser",
        "_guarded",
        "_index",
        "_mixed",
        "_plain",
        "_quotas",
        "_rng",
        "_rotation",
        "_samples",
        "_seats",
        "_shared",
        "_sized",
        "_slots",
        "_slow_start",
        "_targets",
        "_usual",
        "decisions",
        "fallbacks",
        "line",
        "members",
        "model",
        "most_blocks",
        "name",
        "outputs",
        "policy",
        "wants_facts",
    )

    def __init__(
        self,
        name: str,
        model: Model,
        members: tuple[Member, ...],
        policy: Policy | Rotation,
        shared: Shared,
    ) -> None:
        self.name = name
        self.model = model
        self.members = members
        self._seats = members
        """All of the model's members, also where these are some of them."""
        self.policy = policy
        self._rotation = policy if isinstance(policy, Rotation) else None
        self._chooser = None if isinstance(policy, Rotation) else policy
        if len(members) == 1 and self._chooser is not None:
            self._chooser = Sole()
        self.outputs = MeanOutput()
        self.decisions = Decisions()
        self.fallbacks = NO_FALLBACKS
        queue = model.queue or shared.queue
        self.line = Line(queue.max, queue.max_wait_s)
        """Those who wait for the model."""
        self.wants_facts = policy.wants_facts and len(members) > 1
        """Whether ``lease`` is of use with facts; computing them costs more than most choices."""
        self._mixed = len({one.local for one in members}) > 1
        self._quotas = [one.target.quota for one in members if one.target.quota is not None]
        self._sized = isinstance(policy, Headroom) and len(members) > 1
        self._samples = len(members) > MANY and not isinstance(policy, LocalFirst | Rotation)
        """Whether the policy is shown a sample; `LocalFirst` must see both kinds, and a rotation asks few."""
        self._plain = None if self._samples or self._mixed else self._chooser
        """What chooses among all members as they are, where a choice needs no more."""
        self._usual: Choice = "policy" if len(members) > 1 else "only"
        """Why such a choice is made; see `router.decisions`."""
        self._shared = shared
        self._index = shared.index
        self._rng = shared.rng
        self._slow_start = shared.slow_start
        self._guarded = shared.guarded
        self._targets = frozenset(member.target for member in members)
        self.most_blocks = max((shared.index.capacity(one.load.slot) for one in members), default=0)
        """Of a prompt, that any member may hold."""
        self._by_slot = {member.load.slot: member for member in members}
        self._slots = sum(1 << slot for slot in self._by_slot)

    def only(self, members: tuple[Member, ...]) -> Route:
        """The same route with some of its members; what it learns is learned here, too."""
        route = Route(self.name, self.model, members, self.policy, self._shared)
        route.outputs = self.outputs
        route.decisions = self.decisions
        route._seats = self._seats
        route.fallbacks = self.fallbacks
        route.line = self.line
        return route

    def wants_size(self) -> bool:
        """Whether ``lease`` is of use with facts that say no more than a request's length."""
        if not self._guarded:
            return self._sized
        return self._sized or any(one.counting for one in self._quotas)

    def providers(self) -> Route:
        """The same route with its providers alone."""
        chosen = tuple(one for one in self.members if one.target.kind == "provider")
        return self if len(chosen) == len(self.members) else self.only(chosen)

    def lease(
        self, now: float, exclude: Collection[Target] = (), facts: Facts | None = None
    ) -> Lease | Refusal:
        """A lease on the member that should serve, or why there is none. ``exclude``: those tried already."""
        guarded = self._guarded
        if guarded and self._slow_start.places:
            self._slow_start.update(now)
        free = not exclude and (not guarded or guarded.isdisjoint(self._targets))
        if free and facts is None and self._plain is not None:
            member = self._plain.pick(self.members, UNKNOWN, now, self._rng)
            self.decisions.counts[self._usual] += 1
            return member.target.lease(now, NOTHING, self.outputs)
        blocks = facts.blocks if facts is not None else ()
        depths = self._index.depths(blocks) if blocks else NOBODY
        policy, rotation = self._chooser, self._rotation
        ready: Sequence[Member] = self._sample(depths) if self._samples else self.members
        if policy is None:
            assert rotation is not None, "a policy is one or the other"
            turn = self._next(rotation, facts, now, exclude)
            if type(turn) is Refusal:
                return turn
            member, demand = turn, self._demand(facts, depths, (turn,))
        else:
            if not free:
                admitting = self._ready(ready, facts, now, exclude)
                if type(admitting) is Refusal:
                    return admitting
                ready = admitting
            demand = self._demand(facts, depths, ready)
            member = policy.pick(ready, demand, now, self._rng)
        self.decisions.counts[self._reason(member, len(ready), now)] += 1
        claim = NOTHING
        if facts is not None:
            claim = member.load.claim(demand)
            if blocks:
                slot = member.load.slot
                self._index.record(slot, blocks)
                self.decisions.matches.observe(demand.cached.get(slot, 0) / demand.input_tokens)
        hold = None if free else self._hold(member.target, facts, now)
        return member.target.lease(now, claim, self.outputs, hold)

    def _hold(self, target: Target, facts: Facts | None, now: float) -> Hold | None:
        """What the request takes of the target's quota; None where nobody counts."""
        quota = target.quota
        if quota is None or not quota.counting:
            return None
        return quota.reserve(self._need(facts), now)

    def _reason(self, member: Member, choices: int, now: float) -> Choice:
        """Why ``member`` was chosen among so many; see `router.decisions`."""
        breaker = member.target.breaker
        if breaker.state is not ADMITTING:
            return "probe" if breaker.admits(now) else "panic"
        if self._mixed and not member.local:
            return "spill"
        return "policy" if choices > 1 else "only"

    def _ready(
        self,
        shown: Sequence[Member],
        facts: Facts | None,
        now: float,
        exclude: Collection[Target],
    ) -> list[Member] | Refusal:
        """Those of ``shown`` whom the policy may choose among; of all where none of those admits."""
        ready: list[Member] = []
        guarded, limited = self._guarded, False
        for one in shown:
            target = one.target
            if target in exclude:
                continue
            if target not in guarded:
                ready.append(one)
            elif target.admits(now):
                ready.append(one)
                quota = target.quota
                if quota is not None and quota.knows:
                    limited = True
        if limited:
            return self._fitting(ready, shown, facts, now, exclude)
        if ready:
            return ready
        ready = self._whoever(now, exclude)
        if not ready:
            return self._refusal(now, exclude)
        return self._fitting(ready, self.members, facts, now, exclude)

    def _fitting(
        self,
        ready: list[Member],
        shown: Sequence[Member],
        facts: Facts | None,
        now: float,
        exclude: Collection[Target],
    ) -> list[Member] | Refusal:
        """Those of ``ready`` whose providers' limits let the request through; of all where none that was shown does."""
        need = self._need(facts)
        fitting = [m for m in ready if m.target.fits(need, now)]
        if not fitting and len(shown) < len(self.members):
            ready = self._whoever(now, exclude)
            fitting = [m for m in ready if m.target.fits(need, now)]
        return fitting or Refusal("quota", self._fits_at(ready, exclude, need, now))

    def _need(self, facts: Facts | None) -> Need:
        """What a request is thought to take of a provider's limits."""
        output = int(self.outputs.value)
        if facts is None:
            return Need(0, output)
        limit = facts.output_limit
        return Need(facts.input_tokens, output if limit is None else min(output, limit), limit)

    def _fits_at(
        self, ready: Sequence[Member], exclude: Collection[Target], need: Need, now: float
    ) -> float:
        """When the first of those who are up lets the request through; ``ready`` are those who don't rest."""
        resting = [
            one
            for one in self.members
            if one.target.available and one.target.resting_until > now
            and one.target not in exclude
        ]  # fmt: skip
        return min(
            max(one.target.resting_until, now + one.target.wait_s(need, now))
            for one in (*ready, *resting)
        )

    def _next(
        self, rotation: Rotation, facts: Facts | None, now: float, exclude: Collection[Target]
    ) -> Member | Refusal:
        """Whose turn it is."""
        need = self._need(facts) if self._quotas else NO_NEED
        narrow = None if self.members is self._seats else frozenset(self.members)
        quotas = bool(self._quotas)

        def ready(one: Member) -> bool:
            target = one.target
            return (
                target.admits(now)
                and target not in exclude
                and (narrow is None or one in narrow)
                and (not quotas or target.fits(need, now))
            )

        member = rotation.next(self._seats, ready, self._rng)
        if member is not None:
            return member
        left = self._whoever(now, exclude)
        if not left:
            return self._refusal(now, exclude)
        fitting = {one for one in left if one.target.fits(need, now)}
        member = rotation.next(self._seats, fitting.__contains__, self._rng)
        return member or Refusal("quota", self._fits_at(left, exclude, need, now))

    def _whoever(self, now: float, exclude: Collection[Target]) -> list[Member]:
        """Those who admit, of all; where nobody even serves, the least bad of those who do in a panic."""
        left = [member for member in self.members if member.target not in exclude]
        ready = [member for member in left if member.target.admits(now)]
        if ready or any(member.target.serves(now) for member in left):
            return ready
        left = [member for member in left if member.target.panics(now)]
        least = min((member.target.breaker.badness for member in left), default=None)
        return [member for member in left if member.target.breaker.badness == least]

    def _demand(
        self, facts: Facts | None, depths: Sequence[tuple[int, int]], ready: Sequence[Member]
    ) -> Demand:
        if facts is None:
            return UNKNOWN
        output = self.outputs.value
        if facts.output_limit is not None and facts.output_limit < output:
            output = float(facts.output_limit)
        if not depths:
            return Demand(facts.input_tokens, output)
        among = self._slots
        if len(self.members) > MANY:
            among = sum(1 << member.load.slot for member in ready)
        cached = by_slot(depths, among)
        if depths[-1][0] > facts.input_tokens:
            cached = {slot: min(tokens, facts.input_tokens) for slot, tokens in cached.items()}
        return Demand(facts.input_tokens, output, cached)

    def _sample(self, depths: Sequence[tuple[int, int]]) -> list[Member]:
        """Some at random and the deepest holders, each once."""
        random_, members = self._rng.random, self.members
        count = len(members)
        chosen = {int(random_() * count) for _ in range(SAMPLE)}
        missing = HOLDERS
        for _, mask in reversed(depths):
            rest = mask & self._slots
            while rest and missing:
                bit = rest & -rest
                rest ^= bit
                chosen.add(self._by_slot[bit.bit_length() - 1].order)
                missing -= 1
        return [members[order] for order in chosen]

    def _refusal(self, now: float, exclude: Collection[Target]) -> Refusal:
        up = [member.target for member in self.members if member.target.available]
        if not up:
            return Refusal("unavailable", now + RESTART_GUESS_S)
        left = [target for target in up if target not in exclude]
        if not left:
            return Refusal("all_tried", now)
        waits = (
            one.resting_until if one.resting_until > now else one.breaker.until for one in left
        )
        retry_at = min((wait for wait in waits if wait > now), default=math.inf)
        full = any(one.full and now >= one.resting_until for one in left)
        return Refusal("full" if full else "resting", retry_at)


class Pool:
    """All routes and all targets."""

    def __init__(
        self, routes: Mapping[str, Route], targets: Mapping[str, Target], shared: Shared
    ) -> None:
        """``routes`` by name and alias in lower case; ``targets`` by id."""
        self.routes = routes
        self.targets = targets
        self.index = shared.index
        self.guarded = shared.guarded

    def route(self, name: str) -> Route | None:
        """The model of that name or alias; the case of an alias doesn't matter."""
        return self.routes.get(name) or self.routes.get(name.lower())

    def of_backend(self, backend: str) -> list[Target]:
        """The targets that stand or fall with one backend."""
        return [target for target in self.targets.values() if target.backend == backend]

    def forget_cache(self, target: Target) -> None:
        """The target's process is gone, and with it what it had cached."""
        self.index.forget(target.load.slot)


def build(
    config: Config, rng: random.Random | None = None, block_tokens: int | None = None
) -> Pool:
    """The pool that a config describes. ``rng`` is for policies that draw; ``block_tokens`` where facts count in
    other blocks than the router's own.
    """
    index = PrefixIndex() if block_tokens is None else PrefixIndex(block_tokens)
    health = config.health
    slow_start = SlowStart(health.slow_start_s, health.slow_start_aggression)
    rng = rng or random.Random(0)  # noqa: S311 - balancing, no secrets
    guarded: set[Target] = set()
    shared = Shared(index, rng, slow_start, guarded, config.queue)
    targets: dict[str, Target] = {}
    routes: dict[str, Route] = {}
    for name, model in config.models.items():
        members = []
        for order, listed in enumerate(model.targets):
            kind = "engine" if listed.engine else "provider"
            backend = listed.engine or listed.provider or ""
            there = listed.model or name
            id_ = backend if kind == "engine" else f"{backend}/{there}"
            if id_ not in targets:
                load = _load(config.engines.get(listed.engine or ""), index)
                breaker = _breaker(health)
                provider = config.providers.get(listed.provider or "")
                quota = Quota(counts_of(provider)) if provider is not None else None
                targets[id_] = Target(
                    id_, backend, there, kind=kind, breaker=breaker, load=load, quota=quota
                )
                targets[id_].slow_start = slow_start
                targets[id_].guarded = guarded
                guarded.add(targets[id_])
                if provider is not None:
                    targets[id_].continues = provider.continues
            target = targets[id_]
            target.concurrency.cap(listed.max_inflight)
            members.append(Member(target, order, listed.weight, listed.price, model.thrift))
        _stand_in(members, health.max_ejected)
        route = Route(name, model, tuple(members), POLICIES[policy_of(model)](model), shared)
        for known_as in (name, name.lower(), *(alias.lower() for alias in model.aliases)):
            routes[known_as] = route
    for target in targets.values():
        target.release(0.0)
    for name, model in config.models.items():
        routes[name].fallbacks = _fallbacks(model, routes)
    return Pool(routes, targets, shared)


def _fallbacks(model: Model, routes: Mapping[str, Route]) -> Fallbacks:
    listed = (model.fallback, model.context_fallback, model.content_filter_fallback)
    if not any(listed):
        return NO_FALLBACKS
    return Fallbacks(*(tuple(routes[name.lower()] for name in names) for names in listed))


def policy_of(model: Model) -> PolicyName:
    """The model's policy, or the one for targets like its own. Engines say how large their caches are and serve
    first come first served, which a cost can be computed from; of a provider's insides nothing is known but what it
    tells of its limits.
    """
    if model.policy is not None:
        return model.policy
    engines = sum(listed.engine is not None for listed in model.targets)
    if engines < len(model.targets):
        return "local_first" if engines else "headroom"
    return "expected_cost" if engines > 1 else "least_inflight"


def _breaker(health: Health) -> Breaker:
    rate = SuccessRate(health.window_s, health.min_requests, health.min_success)
    return Breaker(health.failures, health.eject_s, rate)


def _stand_in(members: Sequence[Member], max_ejected: float) -> None:
    """Make a model's targets stand in for each other. One that is alone may be ejected for the other models that
    list it: here it serves all the same.
    """
    targets = dict.fromkeys(member.target for member in members)
    cohort = Cohort(len(targets), max_ejected)
    for target in targets if len(targets) > 1 else ():
        target.breaker.join(cohort)
    for member in members:
        member.target.places.append(member)


def _load(spec: EngineSpec | None, index: PrefixIndex) -> Load:
    capacity = cache_tokens(spec)
    return Load(index.add(capacity), costs_of(spec), capacity, None if spec is None else spec.slots)


def cache_tokens(spec: EngineSpec | None) -> int | None:
    """Tokens that the engine's cache holds; None where nobody says."""
    if isinstance(spec, SimulatedSpec):
        return spec.kv_tokens
    if isinstance(spec, ExLlamaSpec):
        return spec.cache_tokens
    if isinstance(spec, LlamaCppSpec):
        return spec.slots * spec.context_tokens
    return None


def costs_of(spec: EngineSpec | None) -> Costs:
    """What work costs on that engine, as far as its settings say."""
    if spec is not None and spec.costs is not None:
        return costs_from(spec.costs)
    if not isinstance(spec, SimulatedSpec):
        return DEFAULT_COSTS
    step_s = 1 / spec.tokens_per_s
    return Costs(
        prefill_token_s=1 / spec.prefill_tokens_per_s,
        attention_s=0.0,
        step_s=step_s,
        request_s=spec.batch_penalty * step_s,
        context_s=0.0,
    )


def costs_from(costs: WorkCosts) -> Costs:
    """An engine's own figures, as balancing takes them."""
    return Costs(**msgspec.structs.asdict(costs))


DEFAULT_COSTS = Costs()
"""One object, so that engines of a kind can be seen to be alike."""
