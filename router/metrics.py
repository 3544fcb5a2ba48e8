"""Metrics for Prometheus: fed by events, read by scrapes.

Names, labels and buckets are OpenTelemetry's GenAI conventions where they have a name, ``nenya_`` for the rest.
Labels come from closed sets: configured names, the faults that exist, and ``other``. Children are cached by label
set and a request is observed once, at its end: never per token. What stands still between events (load, states) is
read from the router when somebody scrapes.

A scrape has two halves, because rendering a large page takes tens of milliseconds and the router's state belongs to
its loop: ``scrape`` reads the state, on the loop; what it returns renders, in any thread.

Source: OpenTelemetry semantic conventions for generative AI metrics; prometheus_client's documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, TypeVar

import msgspec
from prometheus_client import CollectorRegistry, Info
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from router.counters import Count, Counter, Histogram, Spread
from router.errors import FaultKind
from router.events import (
    Admitted,
    AttemptDone,
    Event,
    Fallback,
    Hearer,
    Hedge,
    LimitDecision,
    Queued,
    Recovery,
    RequestDone,
    Retry,
    RetryRefused,
    TargetState,
    UsageLost,
)

if TYPE_CHECKING:
    from router.app import Stats

OPERATION = "chat"
"""The only operation there is; OpenTelemetry's word for it."""
OTHER = "other"
NONE = "none"
"""The target of a request that never had one."""

FIRST_TOKEN_BUCKETS = (
    .001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160,
)  # fmt: skip
PER_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
DURATION_BUCKETS = tuple(0.01 * 2**k for k in range(17))
SPEED_BUCKETS = (1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
OVERHEAD_BUCKETS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
)

STATES = ("admitting", "ejected", "probing", "unavailable")
OUTCOMES = frozenset({
    "ok", "client_gone", "rate_limit_exceeded", "model_unavailable", "model_not_found", "context_length_exceeded",
    "invalid_value", "invalid_request_error", "insufficient_quota", "overloaded", "shutting_down", "internal_error",
    *(kind.value for kind in FaultKind),
})  # fmt: skip
"""What a request may end with by name; upstreams send codes of their own, and those are ``other``."""

TURNED_AWAY = frozenset({"full", "shed", "hopeless"})
"""Outcomes of requests that never stood in line."""

MAX_CACHED = 10_000
"""Label sets found without a look-up; the codes that upstreams invent must not fill memory."""

T = TypeVar("T")
_Key = tuple[str, str, str, str]


class _Ended(msgspec.Struct, frozen=True):
    """The children that a request of one label set is counted in at its end."""

    requests: Count
    duration: Spread
    first_token: Spread
    per_token: Spread
    speed: Spread
    input_tokens: Count
    cached_tokens: Count
    output_tokens: Count
    cost_usd: Count


class Metrics(Hearer):
    """A listener of events, and the page that is made of them."""

    def __init__(
        self, stats: Callable[[], Stats], *, models: Iterable[str], targets: Mapping[str, str]
    ) -> None:
        """``models`` and ``targets`` (id to provider) are the names that may become labels."""
        self._stats = stats
        self._models = frozenset(models)
        self._targets = frozenset(targets)
        self._providers = frozenset(targets.values())
        self._registry = CollectorRegistry()
        self._ended: dict[_Key, _Ended] = {}
        self._attempted: dict[_Key, Spread] = {}
        self.hears = {
            RequestDone: self._request,
            AttemptDone: self._attempt,
            Retry: self._retry,
            Hedge: self._mended,
            Fallback: self._mended,
            Recovery: self._mended,
            RetryRefused: self._mended,
            Queued: self._queued,
            TargetState: self._state,
            Admitted: self._admitted,
            LimitDecision: self._decision,
            UsageLost: self._lost,
        }
        self._make_requests()
        self._make_targets()
        self._make_lines()
        self._make_accounts()
        info = Info("nenya_build", "Version of Nenya", registry=self._registry)
        info.info({"version": _version()})

    def _make_requests(self) -> None:
        registry = self._registry
        genai = ("operation", "provider", "request_model")
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds", "Time from a request's arrival to its answer's end",
            (*genai, "error_type"), buckets=DURATION_BUCKETS, registry=registry,
        )  # fmt: skip
        self._first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds", "Time from a stream's request to its first token",
            genai, buckets=FIRST_TOKEN_BUCKETS, registry=registry,
        )  # fmt: skip
        self._per_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds", "Time per token of a stream after its first",
            genai, buckets=PER_TOKEN_BUCKETS, registry=registry,
        )  # fmt: skip
        self._attempts = Histogram(
            "gen_ai_client_operation_duration_seconds", "Time of one attempt at one target",
            (*genai, "error_type", "target"), buckets=DURATION_BUCKETS, registry=registry,
        )  # fmt: skip
        self._requests = Counter(
            "nenya_requests",
            "Requests that ended",
            ("model", "target", "outcome"),
            registry=registry,
        )
        self._tokens = Counter(
            "nenya_tokens", "Tokens; cached_input are part of input", ("model", "provider", "type"),
            registry=registry,
        )  # fmt: skip
        self._burnt = Counter(
            "nenya_burnt_tokens", "Tokens that targets took and no answer has a part in",
            ("model", "provider", "type"), registry=registry,
        )  # fmt: skip
        self._speed = Histogram(
            "nenya_output_tokens_per_second", "Tokens a second of a stream after its first",
            ("model", "provider"), buckets=SPEED_BUCKETS, registry=registry,
        )  # fmt: skip
        self._overhead = Histogram(
            "nenya_overhead_seconds", "Time from a request's arrival to its first attempt",
            buckets=OVERHEAD_BUCKETS, registry=registry,
        ).labels()  # fmt: skip

    def _make_targets(self) -> None:
        labels = ("target", "reason")
        self._ejections = Counter(
            "nenya_target_ejections", "Times a target was ejected", labels, registry=self._registry
        )
        self._refusals = Counter(
            "nenya_upstream_429", "Attempts that a provider refused for its limits", ("target",),
            registry=self._registry,
        )  # fmt: skip
        self._retries = Counter(
            "nenya_retries", "Attempts that failed and were followed by another", labels,
            registry=self._registry,
        )  # fmt: skip
        self._retries_refused = Counter(
            "nenya_retries_refused", "Failed attempts that the retry budget didn't let be followed by another",
            ("model", "reason"), registry=self._registry,
        )  # fmt: skip

        self._hedges = Counter(
            "nenya_hedges", "Requests sent to a second target because the first was late",
            ("target", "outcome"), registry=self._registry,
        )  # fmt: skip
        self._fallbacks = Counter(
            "nenya_fallbacks", "Requests that another model was asked to answer", ("model", "to", "reason"),
            registry=self._registry,
        )  # fmt: skip
        self._recoveries = Counter(
            "nenya_recoveries", "Streams that broke after their first byte: what came of asking for the rest",
            ("target", "outcome"), registry=self._registry,
        )  # fmt: skip

    def _make_lines(self) -> None:
        registry = self._registry
        self._waits = Histogram(
            "nenya_queue_wait_seconds", "Time in line for a target, however it ended",
            ("model", "priority"), buckets=FIRST_TOKEN_BUCKETS, registry=registry,
        )  # fmt: skip
        self._queue_refusals = Counter(
            "nenya_queue_refusals", "Requests that the line didn't take, or that left it with an error",
            ("model", "reason"), registry=registry,
        )  # fmt: skip

    def _make_accounts(self) -> None:
        registry = self._registry
        self._cost = Counter(
            "nenya_cost_usd", "Cost at the models' prices", ("model", "provider"), registry=registry
        )
        self._decisions = Counter(
            "nenya_ratelimit_decisions", "Requests of limited keys, admitted or refused",
            ("scope", "resource", "outcome"), registry=registry,
        )  # fmt: skip
        self._usage_lost = Counter(
            "nenya_usage_records_dropped", "Records of usage that the database never took",
            registry=registry,
        ).labels()  # fmt: skip

    # Counting

    def _retry(self, event: Retry) -> None:
        self._retries.labels(self._target(event.target), event.reason.value).inc()

    def _state(self, event: TargetState) -> None:
        if event.state == "ejected":
            self._ejections.labels(self._target(event.target), _reason(event.reason)).inc()

    def _lost(self, _: UsageLost) -> None:
        self._usage_lost.inc()

    def _mended(self, event: Event) -> None:
        if isinstance(event, RetryRefused):
            self._retries_refused.labels(self._model(event.model), event.reason.value).inc()
        elif isinstance(event, Hedge):
            self._hedges.labels(self._target(event.target), event.outcome).inc()
        elif isinstance(event, Fallback):
            names = (self._model(event.model), self._model(event.to), _outcome(event.reason))
            self._fallbacks.labels(*names).inc()
        elif isinstance(event, Recovery):
            self._recoveries.labels(self._target(event.target), event.outcome).inc()

    def _queued(self, event: Queued) -> None:
        model = self._model(event.model)
        if event.outcome not in TURNED_AWAY:
            self._waits.labels(model, str(event.priority)).observe(event.wait_s)
        if event.outcome not in {"served", "gone"}:
            self._queue_refusals.labels(model, event.outcome).inc()

    def _admitted(self, event: Admitted) -> None:
        for resource in event.resources:
            self._decisions.labels(event.scope, resource, "admitted").inc()

    def _decision(self, event: LimitDecision) -> None:
        self._decisions.labels(event.scope, event.resource, event.outcome).inc()

    def _request(self, event: RequestDone) -> None:
        key = (event.model, event.target, event.provider, event.outcome)
        series = self._ended.get(key) or self._series(key)
        series.requests.inc()
        series.duration.observe(event.duration_s)
        if event.overhead_s is not None:
            self._overhead.observe(event.overhead_s)
        if event.input_tokens:
            series.input_tokens.inc(event.input_tokens)
        if event.cached_input_tokens:
            series.cached_tokens.inc(event.cached_input_tokens)
        if event.output_tokens:
            series.output_tokens.inc(event.output_tokens)
        if event.cost_usd:
            series.cost_usd.inc(event.cost_usd)
        if event.burnt_input_tokens or event.burnt_output_tokens:
            labels = self._model(event.model), self._provider(event.provider)
            self._burnt.labels(*labels, "input").inc(event.burnt_input_tokens or 0)
            self._burnt.labels(*labels, "output").inc(event.burnt_output_tokens or 0)
        if event.streaming and event.first_token_s is not None:
            self._stream(event, event.first_token_s, series)

    @staticmethod
    def _stream(event: RequestDone, first_token_s: float, series: _Ended) -> None:
        series.first_token.observe(first_token_s)
        rest_s = event.duration_s - first_token_s
        if event.output_tokens is not None and event.output_tokens > 1 and rest_s > 0:
            series.per_token.observe(rest_s / (event.output_tokens - 1))
            series.speed.observe((event.output_tokens - 1) / rest_s)

    def _attempt(self, event: AttemptDone) -> None:
        error = event.fault.value if event.fault is not None else ""
        if event.fault is FaultKind.RATE_LIMITED:
            self._refusals.labels(self._target(event.target)).inc()
        key = (event.model, event.target, event.provider, error)
        child = self._attempted.get(key)
        if child is None:
            model, target, provider = (
                self._model(event.model),
                self._target(event.target),
                self._provider(event.provider),
            )
            child = self._attempts.labels(OPERATION, provider, model, error, target)
            self._keep(self._attempted, key, child)
        child.observe(event.duration_s)

    def _series(self, key: _Key) -> _Ended:
        model, target = self._model(key[0]), self._target(key[1])
        provider, outcome = self._provider(key[2]), _outcome(key[3])
        error = "" if outcome == "ok" else outcome
        genai = (OPERATION, provider, model)
        series = _Ended(
            requests=self._requests.labels(model, target, outcome),
            duration=self._duration.labels(*genai, error),
            first_token=self._first_token.labels(*genai),
            per_token=self._per_token.labels(*genai),
            speed=self._speed.labels(model, provider),
            input_tokens=self._tokens.labels(model, provider, "input"),
            cached_tokens=self._tokens.labels(model, provider, "cached_input"),
            output_tokens=self._tokens.labels(model, provider, "output"),
            cost_usd=self._cost.labels(model, provider),
        )
        self._keep(self._ended, key, series)
        return series

    @staticmethod
    def _keep(cache: dict[_Key, T], key: _Key, value: T) -> None:
        if len(cache) < MAX_CACHED:
            cache[key] = value

    def _model(self, name: str) -> str:
        return name if name in self._models else OTHER

    def _target(self, name: str) -> str:
        return name if name in self._targets else OTHER if name else NONE

    def _provider(self, name: str) -> str:
        return name if name in self._providers else OTHER if name else NONE

    # Rendering

    def scrape(self, accept: str) -> Callable[[], tuple[str, bytes]]:
        """What renders the page that ``accept`` (the header) asks for: its content type and its bytes."""
        encode, content_type = choose_encoder(accept)
        page = _Page(self._registry, self._stats())

        def render() -> tuple[str, bytes]:
            return content_type, encode(page)

        return render

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """Both halves at once, where it may take its time."""
        return self.scrape(accept)()


class _Page(Collector):
    """What the registry counted, and the router's state as it was."""

    def __init__(self, registry: CollectorRegistry, stats: Stats) -> None:
        self._registry = registry
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        yield from self._registry.collect()
        inflight = GaugeMetricFamily(
            "nenya_target_inflight_requests", "Requests a target is working on", labels=["target"]
        )
        state = GaugeMetricFamily(
            "nenya_target_state", "1 for the state a target is in", labels=["target", "state"]
        )
        depth = GaugeMetricFamily(
            "nenya_queue_depth", "Requests that wait for a target", labels=["model", "priority"]
        )
        for line in self._stats.lines:
            depth.add_metric([line.model, str(line.priority)], line.waiting)
        for one in self._stats.targets:
            inflight.add_metric([one.target], one.inflight)
            for name in STATES:
                state.add_metric([one.target, name], float(one.state == name))
        yield inflight
        yield state
        yield depth
        yield from self._limits()

    def _limits(self) -> Iterator[Metric]:
        labels = ["target", "resource"]
        limit = GaugeMetricFamily(
            "nenya_upstream_ratelimit_limit", "A limit that the provider sets us", labels=labels
        )
        remaining = GaugeMetricFamily(
            "nenya_upstream_ratelimit_remaining", "What is thought to be left of it", labels=labels
        )
        reset = GaugeMetricFamily(
            "nenya_upstream_ratelimit_reset_seconds", "Time until it is thought to be whole", labels=labels
        )  # fmt: skip
        for one in self._stats.targets:
            for gauge in one.quota:
                values = [one.target, gauge.resource]
                limit.add_metric(values, gauge.limit)
                remaining.add_metric(values, gauge.remaining)
                reset.add_metric(values, gauge.reset_s)
        yield from (limit, remaining, reset)


def _outcome(code: str) -> str:
    return code if code in OUTCOMES else OTHER


def _reason(reason: str) -> str:
    return reason if reason in OUTCOMES else OTHER


def _version() -> str:
    try:
        return version("nenya")
    except PackageNotFoundError:
        return "unknown"
