"""The router's state as one document: what `GET /status` answers and the page at the admin port shows.

It is collected when somebody asks, and at most once in FRESH_S however many ask. docs/status.md explains the fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import msgspec

from router import __version__
from router.clock import Clock, SystemClock
from router.policy.quota import Gauge
from router.pool import policy_of
from router.recent import BUCKET_S, WINDOW_BUCKETS, Error, Point, Rates, Recent, Totals

if TYPE_CHECKING:
    from router.app import EngineStats, Router
    from router.pool import Route
    from router.target import Target

FRESH_S = 0.5
"""The document of a thousand targets takes some ten milliseconds of the loop's time: twenty viewers must not take
them twenty times a second."""

TargetState = Literal[
    "admitting",
    "full",
    "paused",
    "ejected",
    "probing",
    "starting",
    "restarting",
    "failed",
    "stopped",
]
Health = Literal["ready", "not ready", "draining"]


class Waiting(msgspec.Struct, frozen=True):
    """Those who wait for a model with one priority."""

    priority: int
    requests: int


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A model that clients ask for."""

    name: str
    aliases: tuple[str, ...]
    policy: str
    context_tokens: int | None
    targets: tuple[str, ...]
    admitting: int
    """How many of its targets take a request now."""
    waiting: int
    """Requests in line for it."""
    waiting_by_priority: tuple[Waiting, ...]
    most_waiting: int
    """How many there is room for."""
    rates: Rates


class TargetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who serves models: its state, its load, what is left of its provider's limits."""

    id: str
    kind: Literal["engine", "provider"]
    backend: str
    """The engine's or provider's name in the config."""
    model: str
    """The model's name there."""
    models: tuple[str, ...]
    """Names that it serves here."""
    state: TargetState
    until_s: float | None
    """How long a pause lasts, or how long an ejected target isn't probed; 0 when that is over and the next request
    decides."""
    share: float
    """Of its due: less than 1 for a while after it was readmitted."""
    inflight: int
    most_inflight: int | None
    """Requests it may have at once: its config's limit or a learned one; None is unlimited."""
    pending_tokens: int
    """Of prompts that wait for their first token, without what is cached; estimated."""
    context_tokens: int
    """Of prompts whose answers are being written; estimated."""
    speed: float
    """Against its costs as they were guessed or measured: 0.5 is half as fast. 1 while nothing is known."""
    quota: tuple[Gauge, ...]
    rates: Rates
    history: tuple[Point, ...]


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """An engine on this machine."""

    name: str
    kind: str
    state: str
    """Of its process: ``starting``, ``loading``, ``ready``, ``draining``, ``backoff``, ``failed`` or ``stopped``."""
    detail: str
    """Why it isn't ready, where there is a reason."""
    loaded: float | None
    """Share of its model that is loaded, while it loads and if it says so."""
    model: str
    restarts: int
    slots: int | None
    """Requests it works on at once; None until it was ready."""
    context_tokens: int | None
    kv_tokens: int | None
    kv_tokens_used: int
    running: int
    waiting: int
    """Requests in its own queue."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The whole."""

    version: str
    health: Health
    now: float
    """Seconds since the epoch."""
    uptime_s: float
    window_s: float
    """Rates are of so many seconds."""
    bucket_s: float
    """A point of a history covers so many."""
    tick: int
    """The present bucket, which isn't over: a point's age is this less its own, times ``bucket_s``."""
    asks_for_keys: bool
    """Whether the API, and with it the playground, wants a client's key."""
    inflight: int
    waiting: int
    totals: Totals
    rates: Rates
    history: tuple[Point, ...]
    models: tuple[ModelStatus, ...]
    targets: tuple[TargetStatus, ...]
    engines: tuple[EngineStatus, ...]
    errors: tuple[Error, ...]
    """The latest first."""


class Overview:
    """Collects the document."""

    def __init__(self, router: Router, clock: Clock | None = None) -> None:
        """Begins to listen to the router's events. ``clock`` must be the router's own."""
        self._router = router
        self._clock = clock or SystemClock()
        self._recent = Recent(router.config.models, router.pool.targets, self._clock)
        self._made_at = float("-inf")
        self._made_of: Health = "ready"
        self._made = b""
        router.listen(self._recent)

    def document(self, health: Health) -> bytes:
        """The document as JSON, at most FRESH_S old."""
        now = self._clock.now()
        if now - self._made_at >= FRESH_S or health != self._made_of:
            self._made = msgspec.json.encode(self.collect(health))
            self._made_at, self._made_of = now, health
        return self._made

    def collect(self, health: Health) -> Status:
        """The document as it is now."""
        now, router, recent = self._clock.now(), self._router, self._recent
        recent.share_out()
        engines = {one.name: one for one in router.engines()}
        routes = {name: router.pool.routes[name] for name in router.config.models}
        targets = self._targets(routes, engines, now)
        return Status(
            version=__version__,
            health=health,
            now=self._clock.wall(),
            uptime_s=now - recent.since,
            window_s=WINDOW_BUCKETS * BUCKET_S,
            bucket_s=BUCKET_S,
            tick=int(now / BUCKET_S),
            asks_for_keys=router.config.asks_for_keys,
            inflight=sum(one.inflight for one in targets),
            waiting=sum(route.line.waiting for route in routes.values()),
            totals=recent.totals,
            rates=recent.all.rates(now, recent.since),
            history=recent.all.history(now),
            models=tuple(self._model(name, route, now) for name, route in routes.items()),
            targets=targets,
            engines=tuple(self._engine(one) for one in engines.values()),
            errors=recent.errors,
        )

    def _model(self, name: str, route: Route, now: float) -> ModelStatus:
        line = route.line
        counts = sorted(line.counts.items(), reverse=True)
        return ModelStatus(
            name=name,
            aliases=tuple(route.model.aliases),
            policy=policy_of(route.model),
            context_tokens=route.model.context_tokens,
            targets=tuple(member.target.id for member in route.members),
            admitting=sum(member.target.admits(now) for member in route.members),
            waiting=line.waiting,
            waiting_by_priority=tuple(Waiting(*count) for count in counts if count[1]),
            most_waiting=line.most,
            rates=self._recent.models[name].rates(now, self._recent.since),
        )

    def _targets(
        self, routes: Mapping[str, Route], engines: Mapping[str, EngineStats], now: float
    ) -> tuple[TargetStatus, ...]:
        listed: dict[str, list[str]] = {}
        share: dict[str, float] = {}
        for name, route in routes.items():
            for member in route.members:
                listed.setdefault(member.target.id, []).append(name)
                share[member.target.id] = member.warmth
        return tuple(
            self._target(target, listed[id_], share[id_], engines.get(target.backend), now)
            for id_, target in self._router.pool.targets.items()
        )

    def _target(
        self,
        target: Target,
        models: list[str],
        share: float,
        engine: EngineStats | None,
        now: float,
    ) -> TargetStatus:
        state, until_s = state_of(target, engine.state if engine is not None else "", now)
        load, most = target.load, target.concurrency.limit
        series = self._recent.targets[target.id]
        return TargetStatus(
            id=target.id,
            kind="engine" if target.kind == "engine" else "provider",
            backend=target.backend,
            model=target.model,
            models=tuple(models),
            state=state,
            until_s=until_s,
            share=share,
            inflight=load.inflight,
            most_inflight=None if most == float("inf") else int(most),
            pending_tokens=load.pending_tokens,
            context_tokens=load.context_tokens,
            speed=load.rate.value,
            quota=target.quota.gauges(now) if target.quota is not None else (),
            rates=series.rates(now, self._recent.since),
            history=series.history(now),
        )

    def _engine(self, engine: EngineStats) -> EngineStatus:
        info, health = engine.info, engine.health
        starts = self._recent.starts.get(engine.name, 0)
        return EngineStatus(
            name=engine.name,
            kind=engine.kind,
            state=engine.state,
            detail=engine.detail,
            loaded=engine.loaded,
            model=info.model if info is not None else "",
            restarts=max(0, starts - 1),
            slots=info.slots if info is not None else None,
            context_tokens=info.context_tokens if info is not None else None,
            kv_tokens=info.kv_tokens if info is not None else None,
            kv_tokens_used=health.kv_tokens_used,
            running=health.running,
            waiting=health.waiting,
        )


_DOWN: Mapping[str, TargetState] = {
    "starting": "starting",
    "loading": "starting",
    "backoff": "restarting",
    "failed": "failed",
}
"""An engine's target while its process, in that state, takes no requests."""


def state_of(target: Target, node: str, now: float) -> tuple[TargetState, float | None]:
    """A target's state for people, and how long it lasts where that is known. ``node``: its engine's, if it has one."""
    if not target.available:
        return _DOWN.get(node, "stopped"), None
    breaker, quota = target.breaker, target.quota
    if breaker.state.value == "probing":
        return "probing", None
    if breaker.state.value == "ejected":
        return "ejected", max(0.0, breaker.until - now)
    closed_until = quota.closed_until if quota is not None else 0.0
    paused_until = max(target.resting_until, closed_until)
    if now < paused_until:
        return "paused", paused_until - now
    return ("full" if target.full else "admitting"), None
