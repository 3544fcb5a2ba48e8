"""The embeddable façade: a whole router as one object, in anybody's event loop.

    async with Router(config) as router:
        answer = await router.chat({"model": "llama3.1:8b", "messages": [...]})
        async for chunk in router.stream({"model": "llama3.1:8b", "messages": [...]}):
            ...

It composes what the layers below offer and decides nothing itself. No global state: several Routers live side by side
in one process. The server calls ``open``, which gives bytes; ``chat`` and ``stream`` are the same with decoded answers.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from engines.base import Engine, EngineError, EngineInfo, Health
from router import pool as pools
from router.accounts.accounts import Accounts
from router.accounts.estimate import request_size
from router.accounts.pairs import Pair
from router.backends.base import Backend, Limits
from router.backends.engine import EngineBackend
from router.backends.openai import OpenAIBackend
from router.backends.supervisor import LocalNode
from router.clock import Clock, SystemClock
from router.config.schema import Config, Price
from router.counters import Spread
from router.decisions import Reason
from router.dispatch import Call, Dispatcher, Reply, Terms
from router.eligible import Eligible
from router.errors import ApiError, invalid_request
from router.events import Events, Listener, TargetState
from router.policy.quota import Gauge
from router.pool import Route
from router.tracing import Arrival, Tracing
from router.tracing import start as start_tracing
from router.wire import sse
from router.wire.chat import ChatRequest, decode_chat, unknown_model
from router.wire.completion import ChatCompletion, ChatCompletionChunk
from router.wire.request import Request

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

_chat = msgspec.json.Decoder(ChatCompletion)
_chunk = msgspec.json.Decoder(ChatCompletionChunk)

LIBRARY = "library"
"""The key id of requests that an embedder makes without naming one."""


class Pricing(msgspec.Struct, frozen=True):
    """What a token costs, in US dollars: decimals as text, for no float holds them."""

    prompt: str
    completion: str


class ModelCard(msgspec.Struct, frozen=True):
    """A model as ``GET /v1/models`` shows it: OpenAI's fields, and what the field's routers add."""

    id: str
    created: int
    owned_by: str
    name: str
    context_length: int | None
    max_completion_tokens: int | None
    object: str = "model"
    pricing: Pricing | msgspec.UnsetType = msgspec.UNSET
    """Left out where the config has no prices."""


class TargetStats(msgspec.Struct, frozen=True):
    """A target's state and load, now."""

    target: str
    models: tuple[str, ...]
    provider: str
    state: str
    inflight: int
    quota: tuple[Gauge, ...] = ()
    """Its provider's limits, as far as they are known."""
    pending_tokens: int = 0
    """Of prompts that have no first token yet, without those that it is thought to hold already."""
    speed_ratio: float = 1.0
    """How fast its first tokens come, against what its costs say."""
    deferrals: Mapping[str, int] = {}
    """Choices that passed it over for its provider's limits, since the start, by limit."""


class EngineStats(msgspec.Struct, frozen=True):
    """An engine on this machine, now."""

    name: str
    kind: str
    """As in the config."""
    state: str
    """Of its process; one that lives in this process is ``ready`` or ``failed``."""
    detail: str
    """Why it is in that state, where there is a reason."""
    loaded: float | None
    """Share of its model that is loaded, where it says so."""
    info: EngineInfo | None
    """What it is, once it was ready."""
    health: Health


class LineStats(msgspec.Struct, frozen=True):
    """How many wait for a model, of one priority, now."""

    model: str
    priority: int
    waiting: int


class RouteStats(msgspec.Struct, frozen=True):
    """How a model's requests were given their targets, since the start; see `router.decisions`."""

    model: str
    policy: str
    decisions: Mapping[Reason, int]
    matches: Spread


class Stats(msgspec.Struct, frozen=True):
    """The router's state, now."""

    inflight: int
    targets: tuple[TargetStats, ...]
    lines: tuple[LineStats, ...] = ()
    """Of priorities that somebody ever waited with."""
    routes: tuple[RouteStats, ...] = ()
    engines: tuple[EngineStats, ...] = ()


class Router:
    """A router: models, targets and the way between."""

    def __init__(
        self,
        config: Config,
        *,
        engines: Mapping[str, Engine] | None = None,
        tracer_provider: TracerProvider | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """``engines``: objects to call directly, in this process, instead of starting nodes for those names.

        ``tracer_provider``: OpenTelemetry's, to make spans with instead of one by the config; it stays its owner's.
        ``clock`` and ``rng`` are for tests.
        """
        self.config = config
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()  # noqa: S311 - jitter, no secrets
        self._total_s = config.timeouts.total_s
        self._created = int(self._clock.wall())
        self._events = Events()
        self._emit = self._events.emit
        self._tracer_provider = tracer_provider
        self.tracing: Tracing | None = None
        """From the start on, where anybody traces."""
        self.pool = pools.build(config, self._rng)
        self._eligible = Eligible(config)
        self.extra_fields = self._eligible.extra_fields
        """Fields of requests that OpenAI doesn't know and somebody here takes."""
        self.accounts = Accounts(config, self._name_of, clock=self._clock, emit=self._emit)
        self.authenticate = self.accounts.authenticate
        """The id of the key in an Authorization header. Raises ApiError 401."""
        self._events.listen(self.accounts)
        self._own_engines = dict(engines or {})
        self._own_info: dict[str, EngineInfo] = {}
        self._nodes: dict[str, LocalNode] = {}
        self._runtime_dir = Path(tempfile.gettempdir()) / f"nenya-{secrets.token_hex(6)}"
        self._backends = self._make_backends()
        self._dispatcher = Dispatcher(
            self._backends,
            _terms(config, self._eligible),
            clock=self._clock,
            rng=self._rng,
            emit=self._emit,
        )
        self.send = self._dispatcher.open
        """The answer to what was admitted; see `open`."""

    async def start(self) -> None:
        """Read the accounts' database and begin to start the engines' nodes; providers can be used at once.

        Raises StoreError, and ConfigError where traces are wanted and OpenTelemetry isn't installed.
        """
        self.tracing = start_tracing(self.config, self._clock, self._tracer_provider)
        await self.accounts.start()
        if self._nodes:
            self._runtime_dir.mkdir(mode=0o700)
        for name, engine in self._own_engines.items():
            self._own_info[name] = await engine.start()
        for node in self._nodes.values():
            await node.start()

    async def wait_ready(self) -> None:
        """Return when every engine can take requests. Raises EngineError of one that can't load."""
        await asyncio.gather(*(node.wait_ready() for node in self._nodes.values()))

    def stop_waiting(self) -> None:
        """The router is about to close: requests that wait in line for a target, or would have to, get a 503 now."""
        self._dispatcher.stop_waiting()

    async def close(self, drain_s: float = 0.0) -> None:
        """Stop: running answers get ``drain_s`` to end, nodes are stopped, connections closed."""
        self.stop_waiting()
        deadline = self._clock.now() + drain_s
        while self.inflight and self._clock.now() < deadline:
            await self._clock.sleep(DRAIN_POLL_S)
        await asyncio.gather(*(node.close(0.0) for node in self._nodes.values()))
        await asyncio.gather(*(backend.close() for backend in self._backends.values()))
        for engine in self._own_engines.values():
            await engine.close()
        await self.accounts.close()
        if self.tracing is not None:
            await self.tracing.close()
        shutil.rmtree(self._runtime_dir, ignore_errors=True)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
            await self.wait_ready()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # Asking.

    async def chat(
        self, request: ChatRequest | Mapping[str, Any], *, key_id: str = LIBRARY
    ) -> ChatCompletion:
        """The whole answer to a request in OpenAI's shape. Raises ApiError."""
        body = _body(request, stream=False)
        reply = await self.open(decode_chat(body, self.extra_fields), body, key_id=key_id)
        try:
            return _chat.decode(await reply.read())
        finally:
            reply.close()

    async def stream(
        self, request: ChatRequest | Mapping[str, Any], *, key_id: str = LIBRARY
    ) -> AsyncIterator[ChatCompletionChunk]:
        """The answer's chunks as they come. Raises ApiError, also midway; leaving the loop early cancels the rest."""
        body = _body(request, stream=True)
        reply = await self.open(decode_chat(body, self.extra_fields), body, key_id=key_id)
        try:
            while blob := await reply.read():
                for event in sse.split(blob):
                    data = sse.data_of(event)
                    if data is not None and data != b"[DONE]":
                        yield _chunk.decode(data)
        finally:
            reply.close()

    async def open(
        self,
        request: Request,
        body: bytes,
        *,
        key_id: str = LIBRARY,
        request_id: str | None = None,
        received_at: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """The answer as bytes, its first piece in hand; ``request`` was decoded from ``body``. Raises ApiError.

        Whoever opens a reply closes it, on every way out. ``received_at`` is monotonic seconds; ``headers`` are those
        that it came with, for its trace.
        """
        call = self.admit(
            request,
            body,
            key_id=key_id,
            request_id=request_id,
            received_at=received_at,
            headers=headers,
        )
        return await self.send(call)

    def admit(
        self,
        request: Request,
        body: bytes,
        *,
        key_id: str,
        request_id: str | None,
        received_at: float | None,
        headers: Mapping[str, str] | None,
    ) -> Call:
        """What `open` does before anything is sent: its key's limits and budget hold what it is likely to take, so it
        goes to ``send`` at once. Raises ApiError.
        """
        now = self._clock.now()
        request_id = request_id or new_request_id()
        if received_at is None:
            received_at = now
        trace = None
        if self.tracing is not None:
            operation = request.operation
            trace = self.tracing.begin(
                Arrival(operation, request, request_id, key_id, received_at, headers)
            )
        charge, priority = None, 0
        try:
            route, pair = self._route(request.model or "", key_id)
            route = self._eligible.narrow(route, request, body)
            if pair is not None:
                charge = self.accounts.admit(pair, request_size(request, body))
                priority = pair.priority
        except ApiError as error:
            if trace is not None:
                trace.refuse(error)
            raise
        return Call(
            request,
            body,
            route,
            request_id,
            key_id,
            received_at,
            now + self._total_s,
            "",
            charge,
            priority,
            trace,
        )

    # Looking.

    def models(self, key_id: str = LIBRARY) -> list[ModelCard]:
        """Every model of the config that the key may ask for, in the config's order."""
        allows = self.accounts.allows
        return [self.model(name) for name in self.config.models if allows(key_id, name)]

    def model(self, name: str, key_id: str = LIBRARY) -> ModelCard:
        """The model of that name or alias. Raises ApiError 404."""
        route, _ = self._route(name, key_id)
        return ModelCard(
            id=route.name,
            created=self._created,
            owned_by=route.model.owned_by,
            name=route.name,
            context_length=route.model.context_tokens,
            max_completion_tokens=route.model.max_completion_tokens,
            pricing=_pricing(route.model.price),
        )

    def ready(self) -> bool:
        """At least one target takes requests now, be it at once or in turn."""
        now = self._clock.now()
        return any(target.serves(now) for target in self.pool.targets.values())

    @property
    def inflight(self) -> int:
        """Attempts under way."""
        return sum(target.inflight for target in self.pool.targets.values())

    def stats(self) -> Stats:
        """A snapshot of every target and every line."""
        listed: dict[str, list[str]] = {id_: [] for id_ in self.pool.targets}
        for name in self.config.models:
            for member in self.pool.routes[name].members:
                listed[member.target.id].append(name)
        now = self._clock.now()
        targets = tuple(
            TargetStats(
                t.id,
                tuple(listed[t.id]),
                t.backend,
                t.state,
                t.inflight,
                t.quota.gauges(now) if t.quota is not None else (),
                t.load.pending_tokens,
                t.load.rate.value,
                dict(t.quota.deferrals) if t.quota is not None else {},
            )
            for t in self.pool.targets.values()
        )
        lines = tuple(
            LineStats(name, priority, waiting)
            for name in self.config.models
            for priority, waiting in self.pool.routes[name].line.counts.items()
        )
        inflight = sum(t.inflight for t in targets)
        return Stats(inflight, targets, lines, self._route_stats(), tuple(self.engines()))

    def _route_stats(self) -> tuple[RouteStats, ...]:
        routes = [(name, self.pool.routes[name]) for name in self.config.models]
        return tuple(
            RouteStats(
                name,
                pools.policy_of(route.model),
                route.decisions.counts.copy(),
                route.decisions.matches.copy(),
            )
            for name, route in routes
        )

    def engines(self) -> list[EngineStats]:
        """Every engine of the config: its process, and its last word."""
        return [self._engine(name) for name in self.config.engines]

    def listen(self, listener: Listener) -> None:
        """Have ``listener`` called with every event from now on, where it happens; it must be quick.

        A `router.events.Hearer` is called with those alone that it hears.
        """
        self._events.listen(listener)

    # Composing.

    def _route(self, name: str, key_id: str) -> tuple[Route, Pair | None]:
        """The route of a name or alias, and the key's terms there (`Accounts.pair`). Raises ApiError 404, also where
        the key may not have it.
        """
        route = self.pool.routes.get(name) or self.pool.route(name)
        if route is None:
            raise unknown_model(name)
        pair = self.accounts.pair(key_id, route.name)
        if pair is not None and not pair.allowed:
            raise unknown_model(name)
        return route, pair

    def _name_of(self, name: str) -> str | None:
        route = self.pool.route(name)
        return None if route is None else route.name

    def _make_backends(self) -> dict[str, Backend]:
        backends: dict[str, Backend] = {}
        for name, provider in self.config.providers.items():
            backends[name] = OpenAIBackend(name, provider)
        for name, spec in self.config.engines.items():
            engine = self._own_engines.get(name)
            if engine is None:
                node = LocalNode(
                    name,
                    spec,
                    runtime_dir=self._runtime_dir,
                    emit=self._emit,
                    on_available=self._follow(name),
                    clock=self._clock,
                )
                self._nodes[name] = node
                self._set_available(name, available=False, reason="starting")
                engine = node.engine
            backends[name] = EngineBackend(name, engine, emit=self._emit)
        return backends

    def _engine(self, name: str) -> EngineStats:
        kind = type(self.config.engines[name]).__struct_config__.tag
        node = self._nodes.get(name)
        if node is not None:
            health, state = node.engine.health(), node.state.value
            loaded = node.loaded if state == "loading" else None
            return EngineStats(name, str(kind), state, node.detail, loaded, node.info, health)
        state, detail, health = "ready", "", Health()
        try:
            health = self._own_engines[name].health()
        except EngineError as error:
            state, detail = "failed", error.message
        info = self._own_info.get(name)
        return EngineStats(name, str(kind), state, detail, None, info, health)

    def _follow(self, backend: str) -> Callable[[bool], None]:
        def on_available(available: bool) -> None:  # noqa: FBT001 - the supervisor's signature
            if available:
                self._note_costs(backend)
            self._set_available(backend, available=available, reason="node")

        return on_available

    def _note_costs(self, backend: str) -> None:
        """Weigh an engine by what it measured; what is under way keeps its weight."""
        info = self._nodes[backend].info
        if info is not None and info.costs is not None:
            for target in self.pool.of_backend(backend):
                target.load.costs = pools.costs_from(info.costs)

    def _set_available(self, backend: str, *, available: bool, reason: str) -> None:
        for target in self.pool.of_backend(backend):
            if target.available != available:
                target.available = available
                if not available:
                    self.pool.forget_cache(target)
                    target.concurrency.forget()
                self._emit(TargetState(target.id, target.state, reason))
                target.freed(self._clock.now())


DRAIN_POLL_S = 0.02
"""Waiting for answers to end is not urgent to the millisecond."""


def new_request_id() -> str:
    """A name for a request: unique, and safe in headers and logs."""
    return "req_" + base64.b32encode(os.urandom(15)).decode().lower()


def _pricing(price: Price | None) -> Pricing | msgspec.UnsetType:
    """Prices for a million tokens as the price of one."""
    if price is None:
        return msgspec.UNSET
    one = [f"{Decimal(str(dollars)).scaleb(-6):f}" for dollars in (price.input, price.output)]
    return Pricing(*one)


def _terms(config: Config, eligible: Eligible) -> Terms:
    clocks = config.timeouts
    limits = Limits(clocks.connect_s, clocks.first_token_s, clocks.idle_s)
    whole = Limits(clocks.connect_s, clocks.answer_s, clocks.idle_s)
    return Terms(
        limits,
        whole,
        config.retry,
        config.recovery,
        prompt_s_per_1k=clocks.first_token_s_per_1k,
        narrow=eligible.narrow,
    )


def _body(request: ChatRequest | Mapping[str, Any], *, stream: bool) -> bytes:
    """The request as a client would have sent it."""
    if isinstance(request, ChatRequest):
        request = msgspec.structs.replace(request, stream=stream)
    else:
        request = {**request, "stream": stream}
    try:
        return msgspec.json.encode(request)
    except (TypeError, ValueError) as error:
        raise invalid_request(f"The request can't be written as JSON: {error}") from error
