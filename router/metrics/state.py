"""What stands still between events: load, health, limits, lines. Read from the router when somebody scrapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from router.counters import Counter, Gauge, Histogram, Taken
from router.decisions import MATCH_BUCKETS

if TYPE_CHECKING:
    from router.app import RouteStats, Stats, TargetStats

STATES = ("admitting", "ejected", "probing", "unavailable")
_TARGET, _LIMIT = ("target",), ("target", "resource")


class StateMetrics:
    """The families of the router's state."""

    def __init__(self) -> None:
        self.inflight = Gauge(
            "nenya_target_inflight_requests", "Requests a target is working on", _TARGET
        )
        self.pending = Gauge(
            "nenya_target_pending_tokens", "Prompt tokens sent to a target that are thought to be still uncomputed",
            _TARGET,
        )  # fmt: skip
        self.speed = Gauge(
            "nenya_target_speed_ratio", "How fast its first tokens come, against what its costs say", _TARGET
        )  # fmt: skip
        self.state = Gauge(
            "nenya_target_state", "1 for the state a target is in", ("target", "state")
        )
        self.depth = Gauge(
            "nenya_queue_depth", "Requests that wait for a target", ("model", "priority")
        )
        self.limit = Gauge(
            "nenya_upstream_ratelimit_limit", "A limit that the provider sets us", _LIMIT
        )
        self.remaining = Gauge(
            "nenya_upstream_ratelimit_remaining", "What is thought to be left of it", _LIMIT
        )
        self.reset = Gauge(
            "nenya_upstream_ratelimit_reset_seconds", "Time until it is thought to be whole", _LIMIT
        )
        self.deferrals = Counter(
            "nenya_ratelimit_deferrals", "Choices that passed a target over because of its provider's limits", _LIMIT
        )  # fmt: skip
        self.decisions = Counter(
            "nenya_routing_decisions", "How requests were given a target, or why they had to wait for one",
            ("model", "policy", "reason"),
        )  # fmt: skip
        self.matches = Histogram(
            "nenya_prefix_match_ratio", "Share of a prompt that its target is thought to have had in its cache",
            ("model",), buckets=MATCH_BUCKETS,
        )  # fmt: skip

    def take(self, stats: Stats) -> Iterator[Taken]:
        """All families, as the router stands."""
        yield from self._load(stats.targets)
        yield from self._limits(stats.targets)
        yield from self._routes(stats.routes)
        yield self.depth.taken(
            [((one.model, str(one.priority)), one.waiting) for one in stats.lines]
        )

    def _load(self, targets: tuple[TargetStats, ...]) -> Iterator[Taken]:
        keys = [((one.target,), one) for one in targets]
        yield self.inflight.taken([(key, one.inflight) for key, one in keys])
        yield self.pending.taken([(key, one.pending_tokens) for key, one in keys])
        yield self.speed.taken([(key, one.speed_ratio) for key, one in keys])
        yield self.state.taken(
            [
                ((one.target, state), float(one.state == state))
                for one in targets
                for state in STATES
            ]
        )

    def _limits(self, targets: tuple[TargetStats, ...]) -> Iterator[Taken]:
        gauges = [((one.target, gauge.resource), gauge) for one in targets for gauge in one.quota]
        yield self.limit.taken([(key, gauge.limit) for key, gauge in gauges])
        yield self.remaining.taken([(key, gauge.remaining) for key, gauge in gauges])
        yield self.reset.taken([(key, gauge.reset_s) for key, gauge in gauges])
        yield self.deferrals.taken(
            [
                ((one.target, resource), count)
                for one in targets
                for resource, count in one.deferrals.items()
            ]
        )

    def _routes(self, routes: tuple[RouteStats, ...]) -> Iterator[Taken]:
        yield self.decisions.taken(
            [
                ((one.model, one.policy, reason), count)
                for one in routes
                for reason, count in one.decisions.items()
            ]
        )
        yield self.matches.taken([((one.model,), one.matches) for one in routes])
