"""Who may serve a request, and who does. Pure: state, arguments and ``now`` in, a lease or a refusal out.

While somebody admits, the policy chooses among those. Where nobody does because all are ejected, they serve all the
same (panic): a guess beats a certain error, and it is how a pool of one comes back. Who asked for rest (429 with
retry-after) gets it, panic or not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import msgspec

from router.config.schema import Config, Model
from router.config.schema import Policy as PolicyName
from router.policy import Policy
from router.policy.breaker import Breaker
from router.policy.least_inflight import LeastInflight
from router.policy.round_robin import RoundRobin
from router.policy.weighted import Weighted
from router.target import Lease, Target

POLICIES: Mapping[PolicyName, Callable[[], Policy]] = {
    "round_robin": RoundRobin,
    "weighted": Weighted,
    "least_inflight": LeastInflight,
}


RESTART_GUESS_S = 1.0
"""An engine that went down is usually back after one restart; a client that waits so long is well served."""


class Member:
    """A target's place in one model's list."""

    __slots__ = ("order", "target", "weight")

    def __init__(self, target: Target, order: int, weight: float) -> None:
        self.target = target
        self.order = order
        self.weight = weight

    @property
    def inflight(self) -> int:
        """Requests the target is working on, for whichever model."""
        return self.target.inflight


class Refusal(msgspec.Struct, frozen=True):
    """Nobody can take the request."""

    reason: str
    """``all_tried``; ``resting``: those left asked to be left alone; ``unavailable``: no process is up."""
    retry_at: float
    """When somebody may, in monotonic seconds."""


class Route:
    """A model that clients ask for: its members and how one is chosen."""

    __slots__ = ("members", "model", "name", "policy")

    def __init__(
        self, name: str, model: Model, members: tuple[Member, ...], policy: Policy
    ) -> None:
        self.name = name
        self.model = model
        self.members = members
        self.policy = policy

    def lease(self, now: float, exclude: Collection[Target] = ()) -> Lease | Refusal:
        """A lease on the member that should serve, or why there is none. ``exclude``: those tried already."""
        ready = [m for m in self.members if m.target not in exclude and m.target.admits(now)]
        if not ready:
            ready = [m for m in self.members if m.target not in exclude and m.target.panics(now)]
        if not ready:
            return self._refusal(now, exclude)
        member = ready[0] if len(self.members) == 1 else self.policy.pick(ready)
        return member.target.lease(now)

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

    def __init__(self, routes: Mapping[str, Route], targets: Mapping[str, Target]) -> None:
        """``routes`` by name and alias in lower case; ``targets`` by id."""
        self.routes = routes
        self.targets = targets

    def route(self, name: str) -> Route | None:
        """The model of that name or alias; the case of an alias doesn't matter."""
        return self.routes.get(name) or self.routes.get(name.lower())

    def of_backend(self, backend: str) -> list[Target]:
        """The targets that stand or fall with one backend."""
        return [target for target in self.targets.values() if target.backend == backend]


def build(config: Config) -> Pool:
    """The pool that a config describes."""
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
                breaker = Breaker(config.health.failures, config.health.eject_s)
                targets[id_] = Target(id_, backend, there, kind=kind, breaker=breaker)
            members.append(Member(targets[id_], order, listed.weight))
        route = Route(name, model, tuple(members), POLICIES[model.policy]())
        for known_as in (name, name.lower(), *(alias.lower() for alias in model.aliases)):
            routes[known_as] = route
    return Pool(routes, targets)
