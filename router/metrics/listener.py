"""Counts what happened, and makes the page.

Children are cached by label set and a request is observed once, at its end: never per token. Requests, attempts and
admissions wait until there are WAITING of them or somebody scrapes, and are counted together: what many have alike is
looked for once. What stands still between events is read from the router when somebody scrapes.

A scrape has two halves, because rendering a large page takes milliseconds and the router's state belongs to its loop:
``scrape`` reads the state and copies the counts, on the loop; what it returns renders, in any thread.

Source: OpenTelemetry semantic conventions for generative AI metrics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

import msgspec

from router import counters
from router.counters import Count, Counter, Gauge, Histogram, Spread, Taken
from router.errors import FaultKind
from router.events import (
    Admitted,
    AttemptDone,
    Event,
    Fallback,
    Generated,
    Hearer,
    Hedge,
    LimitDecision,
    NodeState,
    Queued,
    Recovery,
    RequestDone,
    Retry,
    RetryRefused,
    TargetState,
    UsageLost,
)
from router.metrics import buckets
from router.metrics.engines import EngineMetrics
from router.metrics.lag import LoopLag
from router.metrics.names import Names, outcome
from router.metrics.state import StateMetrics

if TYPE_CHECKING:
    from router.app import Stats

TURNED_AWAY = frozenset({"full", "shed", "hopeless"})
"""Outcomes of requests that never stood in line."""
MAX_CACHED = 10_000
"""Label sets found without a look-up; the codes that upstreams invent must not fill memory."""
WAITING = 128
"""Requests that are counted together: a tenth of a millisecond of the loop's time."""

_GENAI = ("operation", "provider", "request_model")
_TARGET = ("target", "reason")
T = TypeVar("T")
_Key = tuple[str, str, str, str, str]


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
    reasoning_tokens: Count
    cost_usd: Count


class Metrics(Hearer):
    """A listener of events, and the page that is made of them."""

    def __init__(self, stats: Callable[[], Stats], *, worker: str = "0") -> None:
        """``stats`` says what the router knows by name, which alone may become labels, and how it stands. ``worker``
        names this process among those that share the router's ports.
        """
        self._stats = stats
        self._names = Names.of(stats())
        self._families: list[Counter | Histogram] = []
        self._ended: dict[_Key, _Ended] = {}
        self._attempted: dict[_Key, Spread] = {}
        self._done: list[RequestDone] = []
        self._tried: list[AttemptDone] = []
        self._let_in: list[Admitted] = []
        """What waits to be counted."""
        self._state = StateMetrics()
        self._engines = EngineMetrics()
        self.hears = {
            RequestDone: self._request,
            AttemptDone: self._tried.append,
            Retry: self._retry,
            Hedge: self._mended,
            Fallback: self._mended,
            Recovery: self._mended,
            RetryRefused: self._mended,
            Queued: self._queued,
            TargetState: self._target_state,
            Admitted: self._let_in.append,
            LimitDecision: self._decision,
            UsageLost: self._lost,
            Generated: self._engines.generated,
            NodeState: self._engines.moved,
        }
        self._make_requests()
        self._make_targets()
        self._make_lines()
        self._make_accounts()
        self._build = Gauge("nenya_build_info", "1, with the version of Nenya", ("version",))
        lag = self._histogram(
            "nenya_event_loop_lag_seconds", "How late the event loop did what was due, ten times a second",
            ("worker",), buckets.LAG,
        )  # fmt: skip
        self.loop_lag = LoopLag(lag.labels(worker))
        """To be started in the loop that serves."""

    def _counter(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Counter:
        family = Counter(name, documentation, labels)
        self._families.append(family)
        return family

    def _histogram(
        self, name: str, documentation: str, labels: tuple[str, ...], bounds: tuple[float, ...]
    ) -> Histogram:
        family = Histogram(name, documentation, labels, buckets=bounds)
        self._families.append(family)
        return family

    def _make_requests(self) -> None:
        self._duration = self._histogram(
            "gen_ai_server_request_duration_seconds", "Time from a request's arrival to its answer's end",
            (*_GENAI, "error_type"), buckets.DURATION,
        )  # fmt: skip
        self._first_token = self._histogram(
            "gen_ai_server_time_to_first_token_seconds", "Time from a stream's request to its first token",
            _GENAI, buckets.FIRST_TOKEN,
        )  # fmt: skip
        self._per_token = self._histogram(
            "gen_ai_server_time_per_output_token_seconds", "Time per token of a stream after its first",
            _GENAI, buckets.PER_TOKEN,
        )  # fmt: skip
        self._attempts = self._histogram(
            "gen_ai_client_operation_duration_seconds", "Time of one attempt at one target",
            (*_GENAI, "error_type", "target"), buckets.DURATION,
        )  # fmt: skip
        self._requests = self._counter(
            "nenya_requests", "Requests that ended", ("model", "target", "outcome")
        )
        self._tokens = self._counter(
            "nenya_tokens", "Tokens; cached_input are part of input, reasoning of output",
            ("model", "provider", "type"),
        )  # fmt: skip
        self._burnt = self._counter(
            "nenya_burnt_tokens", "Tokens that targets took and no answer has a part in",
            ("model", "provider", "type"),
        )  # fmt: skip
        self._speed = self._histogram(
            "nenya_output_tokens_per_second", "Tokens a second of a stream after its first",
            ("model", "provider"), buckets.SPEED,
        )  # fmt: skip
        self._overhead = self._histogram(
            "nenya_overhead_seconds", "Time from a request's arrival to its first attempt, without waiting in line",
            (), buckets.OVERHEAD,
        ).labels()  # fmt: skip

    def _make_targets(self) -> None:
        self._ejections = self._counter(
            "nenya_target_ejections", "Times a target was ejected", _TARGET
        )
        self._refusals = self._counter(
            "nenya_upstream_429", "Attempts that a provider refused for its limits", ("target", "resource")
        )  # fmt: skip
        self._retries = self._counter(
            "nenya_retries", "Attempts that failed and were followed by another", _TARGET
        )
        self._retries_refused = self._counter(
            "nenya_retries_refused", "Failed attempts that the retry budget didn't let be followed by another",
            ("model", "reason"),
        )  # fmt: skip
        self._hedges = self._counter(
            "nenya_hedges", "Requests sent to a second target because the first was late", ("target", "outcome")
        )  # fmt: skip
        self._fallbacks = self._counter(
            "nenya_fallbacks", "Requests that another model was asked to answer", ("model", "to", "reason")
        )  # fmt: skip
        self._recoveries = self._counter(
            "nenya_recoveries", "Streams that broke after their first byte: what came of asking for the rest",
            ("target", "outcome"),
        )  # fmt: skip

    def _make_lines(self) -> None:
        self._waits = self._histogram(
            "nenya_queue_wait_seconds", "Time in line for a target, however it ended",
            ("model", "priority"), buckets.FIRST_TOKEN,
        )  # fmt: skip
        self._queue_refusals = self._counter(
            "nenya_queue_refusals", "Requests that the line didn't take, or that left it with an error",
            ("model", "reason"),
        )  # fmt: skip

    def _make_accounts(self) -> None:
        self._cost = self._counter(
            "nenya_cost_usd", "Cost at the models' prices", ("model", "provider")
        )
        self._decisions = self._counter(
            "nenya_ratelimit_decisions", "Requests of limited keys, admitted or refused",
            ("scope", "resource", "outcome"),
        )  # fmt: skip
        self._usage_lost = self._counter(
            "nenya_usage_records_dropped", "Records of usage that the database never took"
        ).labels()

    # Counting

    def _retry(self, event: Retry) -> None:
        self._retries.labels(self._names.target(event.target), event.reason.value).inc()

    def _target_state(self, event: TargetState) -> None:
        if event.state == "ejected" and event.reason != "void":  # of a probe that told nothing
            self._ejections.labels(self._names.target(event.target), outcome(event.reason)).inc()

    def _lost(self, _: UsageLost) -> None:
        self._usage_lost.inc()

    def _mended(self, event: Event) -> None:
        names = self._names
        if isinstance(event, RetryRefused):
            self._retries_refused.labels(names.model(event.model), event.reason.value).inc()
        elif isinstance(event, Hedge):
            self._hedges.labels(names.target(event.target), event.outcome).inc()
        elif isinstance(event, Fallback):
            models = names.model(event.model), names.model(event.to)
            self._fallbacks.labels(*models, outcome(event.reason)).inc()
        elif isinstance(event, Recovery):
            self._recoveries.labels(names.target(event.target), event.outcome).inc()

    def _queued(self, event: Queued) -> None:
        model = self._names.model(event.model)
        if event.outcome not in TURNED_AWAY:
            self._waits.labels(model, str(event.priority)).observe(event.wait_s)
        if event.outcome not in {"served", "gone"}:
            self._queue_refusals.labels(model, event.outcome).inc()

    def _decision(self, event: LimitDecision) -> None:
        self._decisions.labels(event.scope, event.resource, event.outcome).inc()

    def _request(self, event: RequestDone) -> None:
        self._done.append(event)
        if len(self._done) >= WAITING:
            self._count()

    def _count(self) -> None:
        """Count what waits. A request's attempts and its admission were told before its end."""
        done, tried, let_in = self._done[:], self._tried[:], self._let_in[:]
        for waiting in (self._done, self._tried, self._let_in):
            waiting.clear()
        for event, alike in groupby(let_in):
            self._count_admitted(event, len(list(alike)))
        attempts = (
            ((e.model, e.target, e.provider, "" if e.fault is None else e.fault.value, e.operation), e)
            for e in tried
        )  # fmt: skip
        for key, some in _by_key(attempts).items():
            self._count_attempts(key, some)
        requests = (((e.model, e.target, e.provider, e.outcome, e.operation), e) for e in done)
        for key, ended in _by_key(requests).items():
            self._count_requests(self._ended.get(key) or self._series(key), ended)

    def _count_admitted(self, event: Admitted, times: int) -> None:
        for resource in event.resources:
            self._decisions.labels(event.scope, resource, "admitted").inc(times)

    def _count_attempts(self, key: _Key, attempts: list[AttemptDone]) -> None:
        """Count attempts that have that label set."""
        if attempts[0].fault is FaultKind.RATE_LIMITED:
            for event in attempts:
                resource = event.resource or "unknown"
                self._refusals.labels(self._names.target(event.target), resource).inc()
        child = self._attempted.get(key)
        if child is None:
            model, target, provider = self._labels(key)
            child = self._attempts.labels(key[4], provider, model, key[3], target)
            self._keep(self._attempted, key, child)
        child.observe_all([event.duration_s for event in attempts])

    def _count_requests(self, series: _Ended, requests: list[RequestDone]) -> None:
        """Count requests of one label set."""
        series.requests.value += len(requests)
        series.duration.observe_all([event.duration_s for event in requests])
        self._overhead.observe_all([s for event in requests if (s := event.overhead_s) is not None])
        given = cached = wrote = reasoned = 0
        cost = 0.0
        streams = []
        for event in requests:
            given += event.input_tokens or 0
            cached += event.cached_input_tokens or 0
            wrote += event.output_tokens or 0
            reasoned += event.reasoning_tokens or 0
            cost += event.cost_usd or 0.0
            if event.burnt_input_tokens or event.burnt_output_tokens:
                self._burn(event)
            if event.streaming and event.first_token_s is not None:
                streams.append((event.first_token_s, event.duration_s, event.output_tokens))
        series.input_tokens.value += given
        series.cached_tokens.value += cached
        series.output_tokens.value += wrote
        series.reasoning_tokens.value += reasoned
        series.cost_usd.value += cost
        if streams:
            self._count_streams(series, streams)

    def _burn(self, event: RequestDone) -> None:
        labels = self._names.model(event.model), self._names.provider(event.provider)
        self._burnt.labels(*labels, "input").inc(event.burnt_input_tokens or 0)
        self._burnt.labels(*labels, "output").inc(event.burnt_output_tokens or 0)

    @staticmethod
    def _count_streams(series: _Ended, streams: list[tuple[float, float, int | None]]) -> None:
        """Count streams: when their first token came, how long they took, and tokens, if that was told."""
        series.first_token.observe_all([first_s for first_s, _, _ in streams])
        rests = [
            (duration_s - first_s) / (tokens - 1)
            for first_s, duration_s, tokens in streams
            if tokens is not None and tokens > 1 and duration_s > first_s
        ]
        series.speed.observe_all([1 / token_s for token_s in rests])
        series.per_token.observe_all(rests)

    def _series(self, key: _Key) -> _Ended:
        model, target, provider = self._labels(key)
        ended = outcome(key[3])
        error = "" if ended == "ok" else ended
        genai = (key[4], provider, model)
        tokens = self._tokens
        series = _Ended(
            requests=self._requests.labels(model, target, ended),
            duration=self._duration.labels(*genai, error),
            first_token=self._first_token.labels(*genai),
            per_token=self._per_token.labels(*genai),
            speed=self._speed.labels(model, provider),
            input_tokens=tokens.labels(model, provider, "input"),
            cached_tokens=tokens.labels(model, provider, "cached_input"),
            output_tokens=tokens.labels(model, provider, "output"),
            reasoning_tokens=tokens.labels(model, provider, "reasoning"),
            cost_usd=self._cost.labels(model, provider),
        )
        self._keep(self._ended, key, series)
        return series

    def _labels(self, key: _Key) -> tuple[str, str, str]:
        names = self._names
        return names.model(key[0]), names.target(key[1]), names.provider(key[2])

    @staticmethod
    def _keep(cache: dict[_Key, T], key: _Key, value: T) -> None:
        if len(cache) < MAX_CACHED:
            cache[key] = value

    # Rendering

    def scrape(self, accept: str) -> Callable[[], tuple[str, bytes]]:
        """What renders the page that ``accept`` (the header) asks for: its content type and its bytes."""
        content_type = counters.content_type_of(accept)
        self._count()
        stats = self._stats()
        self._note_names(Names.of(stats))
        taken = list(self._take(stats))

        def render() -> tuple[str, bytes]:
            return content_type, counters.page(taken, content_type)

        return render

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """Both halves at once, where it may take its time."""
        return self.scrape(accept)()

    def _take(self, stats: Stats) -> Iterator[Taken]:
        yield self._build.taken([((_version(),), 1.0)])
        for family in self._families:
            yield family.take()
        yield from self._state.take(stats)
        yield from self._engines.take(stats.engines)

    def _note_names(self, names: Names) -> None:
        """Series of what the router doesn't know any more are forgotten, and what is new is counted by its name."""
        if names == self._names:
            return
        self._names = names
        self._ended.clear()
        self._attempted.clear()
        for family in self._families:
            family.keep(names.by_label())


def _by_key(pairs: Iterable[tuple[_Key, T]]) -> Mapping[_Key, list[T]]:
    groups: defaultdict[_Key, list[T]] = defaultdict(list)
    for key, event in pairs:
        groups[key].append(event)
    return groups


def _version() -> str:
    try:
        return version("nenya")
    except PackageNotFoundError:
        return "unknown"
