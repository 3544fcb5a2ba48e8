"""Who may serve a request, and who does. Pure: state, arguments and ``now`` in, a lease or a refusal out.

While somebody admits, the policy chooses among those. Where nobody does because all are ejected, they serve all the
same (panic), the least bad first: a guess beats a certain error, and it is how a pool of one comes back. Who asked
for rest (429 with retry-after) gets it, panic or not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from engines.specs import EngineSpec, ExLlamaV2Spec, LlamaCppSpec, SimulatedSpec
from router.config.schema import Config, Health, Model
from router.config.schema import Policy as PolicyName
from router.load import NOTHING, UNKNOWN, Costs, Demand, Facts, Load, MeanOutput
from router.policy import Policy, Rotation
from router.policy.breaker import Breaker, Cohort, SuccessRate
from router.policy.cache_aware import CacheAware
from router.policy.expected_cost import ExpectedCost
from router.policy.least_inflight import LeastInflight
from router.policy.least_tokens import LeastTokens
from router.policy.lmetric import LMetric
from router.policy.power_of_two import PowerOfTwo
from router.policy.round_robin import RoundRobin
from router.policy.slow_start import SlowStart
from router.policy.weighted import Weighted
from router.prefix import PrefixIndex, by_slot
from router.target import Lease, Target

POLICIES: Mapping[PolicyName, Callable[[], Policy | Rotation]] = {
    "round_robin": RoundRobin,
    "weighted": Weighted,
    "least_inflight": LeastInflight,
    "least_tokens": LeastTokens,
    "power_of_two": PowerOfTwo,
    "lmetric": LMetric,
    "cache_aware": CacheAware,
    "expected_cost": ExpectedCost,
}

MANY = 32
"""Past so many members a policy that scores them one by one is shown a sample: its time must not grow with the pool."""
SAMPLE = 16
"""The best of 16 at random is among the best 6 % of the pool on average."""
HOLDERS = 4
"""Members with the longest cached beginning that are shown besides: one for the cache, others where that is busy."""

RESTART_GUESS_S = 1.0
"""An engine that went down is usually back after one restart; a client that waits so long is well served."""


class Member:
    """A target's place in one model's list."""

    __slots__ = ("_whole_weight", "load", "order", "target", "warmth", "weight")

    def __init__(self, target: Target, order: int, weight: float) -> None:
        self.target = target
        self.load = target.load
        """What the target has to do, for whichever model."""
        self.order = order
        self.weight = self._whole_weight = weight
        self.warmth = 1.0

    def warm(self, part: float) -> None:
        """That part of its weight is its due from now on."""
        self.warmth = part
        self.weight = self._whole_weight * part


class Refusal(msgspec.Struct, frozen=True):
    """Nobody can take the request."""

    reason: str
    """``all_tried``; ``resting``: those left asked to be left alone; ``unavailable``: no process is up."""
    retry_at: float
    """When somebody may, in monotonic seconds."""


class Shared(msgspec.Struct, frozen=True):
    """What all routes of a pool have in common."""

    index: PrefixIndex
    rng: random.Random
    slow_start: SlowStart


class Route:
    """A model that clients ask for: its members and how one is chosen."""

    __slots__ = (
        "_by_slot",
        "_index",
        "_rng",
        "_seats",
        "_shared",
        "_slots",
        "members",
        "model",
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
        self.outputs = MeanOutput()
        self.wants_facts = policy.wants_facts and len(members) > 1
        """Whether ``lease`` is of use with facts; computing them costs more than most choices."""
        self._shared = shared
        self._index = shared.index
        self._rng = shared.rng
        self._by_slot = {member.load.slot: member for member in members}
        self._slots = sum(1 << slot for slot in self._by_slot)

    def only(self, members: tuple[Member, ...]) -> Route:
        """The same route with some of its members; what it learns is learned here, too."""
        route = Route(self.name, self.model, members, self.policy, self._shared)
        route.outputs = self.outputs
        route._seats = self._seats
        return route

    def lease(
        self, now: float, exclude: Collection[Target] = (), facts: Facts | None = None
    ) -> Lease | Refusal:
        """A lease on the member that should serve, or why there is none. ``exclude``: those tried already."""
        if self._shared.slow_start:
            self._shared.slow_start.update(now)
        if isinstance(self.policy, Rotation):
            member = self._next(self.policy, now, exclude)
            if member is None:
                return self._refusal(now, exclude)
            return member.target.lease(now, NOTHING, self.outputs)
        depths = self._index.depths(facts.blocks) if facts is not None else []
        shown = self.members if len(self.members) <= MANY else self._sample(depths)
        ready = [member for member in shown if member.target.admits(now)]
        if exclude:
            ready = [member for member in ready if member.target not in exclude]
        if not ready:
            ready = self._whoever(now, exclude)
        if not ready:
            return self._refusal(now, exclude)
        demand = UNKNOWN if facts is None else self._demand(facts, depths, ready)
        alone = len(self.members) == 1
        member = ready[0] if alone else self.policy.pick(ready, demand, now, self._rng)
        if facts is None:
            return member.target.lease(now, NOTHING, self.outputs)
        self._index.record(member.load.slot, facts.blocks)
        return member.target.lease(now, member.load.claim(demand), self.outputs)

    def _next(self, rotation: Rotation, now: float, exclude: Collection[Target]) -> Member | None:
        """Whose turn it is."""
        narrow = None if self.members is self._seats else frozenset(self.members)

        def ready(one: Member) -> bool:
            target = one.target
            return (
                target.admits(now) and target not in exclude and (narrow is None or one in narrow)
            )

        member = rotation.next(self._seats, ready, self._rng)
        if member is not None:
            return member
        left = set(self._whoever(now, exclude))
        return rotation.next(self._seats, left.__contains__, self._rng)

    def _whoever(self, now: float, exclude: Collection[Target]) -> list[Member]:
        """Those who admit, of all; where nobody does, the least bad of those who serve in a panic."""
        left = [member for member in self.members if member.target not in exclude]
        ready = [member for member in left if member.target.admits(now)]
        if ready:
            return ready
        left = [member for member in left if member.target.panics(now)]
        least = min((member.target.breaker.badness for member in left), default=None)
        return [member for member in left if member.target.breaker.badness == least]

    def _demand(
        self, facts: Facts, depths: list[tuple[int, int]], ready: Sequence[Member]
    ) -> Demand:
        output = self.outputs.value
        if facts.output_limit is not None and facts.output_limit < output:
            output = float(facts.output_limit)
        among = self._slots
        if len(self.members) > MANY:
            among = sum(1 << member.load.slot for member in ready)
        cached = by_slot(depths, among)
        if cached and max(cached.values()) > facts.input_tokens:
            cached = {slot: min(tokens, facts.input_tokens) for slot, tokens in cached.items()}
        return Demand(facts.input_tokens, output, cached)

    def _sample(self, depths: list[tuple[int, int]]) -> list[Member]:
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
        resting = [target.resting_until for target in up if target not in exclude]
        if resting:
            return Refusal("resting", min(resting))
        return Refusal("all_tried", now)


class Pool:
    """All routes and all targets."""

    def __init__(
        self, routes: Mapping[str, Route], targets: Mapping[str, Target], index: PrefixIndex
    ) -> None:
        """``routes`` by name and alias in lower case; ``targets`` by id."""
        self.routes = routes
        self.targets = targets
        self.index = index

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
    shared = Shared(index, rng or random.Random(0), slow_start)  # noqa: S311 - balancing, no secrets
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
                targets[id_] = Target(id_, backend, there, kind=kind, breaker=breaker, load=load)
                targets[id_].slow_start = slow_start
            members.append(Member(targets[id_], order, listed.weight))
        _stand_in(members, health.max_ejected)
        route = Route(name, model, tuple(members), POLICIES[policy_of(model)](), shared)
        for known_as in (name, name.lower(), *(alias.lower() for alias in model.aliases)):
            routes[known_as] = route
    return Pool(routes, targets, index)


def policy_of(model: Model) -> PolicyName:
    """The model's policy, or the one for targets like its own. Engines say how large their caches are and serve
    first come first served, which a cost can be computed from; of a provider's insides nothing is known.
    """
    if model.policy is not None:
        return model.policy
    engines_only = all(listed.engine for listed in model.targets)
    return "expected_cost" if engines_only and len(model.targets) > 1 else "least_inflight"


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
    return Load(index.add(capacity), costs_of(spec), capacity)


def cache_tokens(spec: EngineSpec | None) -> int | None:
    """Tokens that the engine's cache holds; None where nobody says."""
    if isinstance(spec, SimulatedSpec):
        return spec.kv_tokens
    if isinstance(spec, ExLlamaV2Spec):
        return spec.cache_tokens
    if isinstance(spec, LlamaCppSpec):
        return spec.slots * spec.context_tokens
    return None


def costs_of(spec: EngineSpec | None) -> Costs:
    """What work costs on that engine, as far as its settings say."""
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


DEFAULT_COSTS = Costs()
"""One object, so that engines of a kind can be seen to be alike."""
