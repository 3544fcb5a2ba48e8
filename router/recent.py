"""What happened lately, for whoever looks: rates of the last minutes, latest errors, starts of engines. A listener.

A request is counted once, in the open bucket of its model and target; when that is over, or somebody looks, it is
shared out to the series of the model, of the target and of all. Memory is bounded: a series holds at most BUCKETS
buckets, one for each model and each target of the config, and of errors the last MOST_ERRORS are kept.

Events carry no prompt, no answer and no secret, so none can be here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import msgspec

from router.clock import Clock
from router.errors import BLAMELESS, FINAL
from router.events import (
    AttemptDone,
    Hearer,
    LimitDecision,
    NodeState,
    RequestDone,
    TargetState,
    UsageLost,
)

BUCKET_S = 5.0
"""Fine enough to see a burst, coarse enough that a bucket of a quiet service has somebody in it."""
BUCKETS = 60
"""Five minutes: what somebody who was called to look wants to see."""
WINDOW_BUCKETS = 12
"""A minute, over which rates are taken: requests take seconds, and are counted when they end."""
MOST_ERRORS = 100
MOST_CHARS = 200
"""Of a code or a reason: both may be an upstream's own words."""
SAME_S = 10.0
"""Errors of one kind, model and target within so long are one line with a count: an outage must not wash away what
came before it."""

CLIENT_GONE = "client_gone"
_NO_ERROR = frozenset({"ok", CLIENT_GONE})


class Bucket:
    """What ended within one stretch of time. Times are sums of seconds."""

    __slots__ = (
        "answer_s", "answers", "cost_usd", "errors", "failures", "first_token_s", "first_tokens", "gone",
        "input_tokens", "output_tokens", "requests", "streamed_tokens", "tick", "worst_s", "writing_s",
    )  # fmt: skip

    def __init__(self, tick: int) -> None:
        """``tick``: its beginning, in BUCKET_S."""
        self.tick = tick
        self.requests = 0
        self.answers = 0
        """Of those, the ones answered in full."""
        self.gone = 0
        """The ones whose client left."""
        self.errors = 0
        """The ones that ended in an error."""
        self.failures = 0
        """Attempts that failed by the target's fault; another may have answered."""
        self.answer_s = 0.0
        self.first_tokens = 0
        """Streams that had one."""
        self.first_token_s = 0.0
        self.worst_s = 0.0
        """The longest wait for a first token."""
        self.input_tokens = 0
        self.output_tokens = 0
        self.streamed_tokens = 0
        """Of streams, behind their first."""
        self.writing_s = 0.0
        """What those took."""
        self.cost_usd = 0.0

    def count(self, done: RequestDone) -> None:
        """A request ended."""
        self.requests += 1
        wrote = done.output_tokens or 0
        self.input_tokens += done.input_tokens or 0
        self.output_tokens += wrote
        if done.cost_usd:
            self.cost_usd += done.cost_usd
        if done.outcome == "ok":
            self.answers += 1
            self.answer_s += done.duration_s
        elif done.outcome == CLIENT_GONE:
            self.gone += 1
        else:
            self.errors += 1
        first_s = done.first_token_s
        if done.streaming and first_s is not None:
            self.first_tokens += 1
            self.first_token_s += first_s
            self.worst_s = max(self.worst_s, first_s)
            if wrote > 1:
                self.streamed_tokens += wrote - 1
                self.writing_s += done.duration_s - first_s

    def add(self, other: Bucket) -> None:
        """Count everything that ``other`` counted."""
        self.requests += other.requests
        self.answers += other.answers
        self.gone += other.gone
        self.errors += other.errors
        self.failures += other.failures
        self.answer_s += other.answer_s
        self.first_tokens += other.first_tokens
        self.first_token_s += other.first_token_s
        self.worst_s = max(self.worst_s, other.worst_s)
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.streamed_tokens += other.streamed_tokens
        self.writing_s += other.writing_s
        self.cost_usd += other.cost_usd


class Rates(msgspec.Struct, frozen=True, gc=False):
    """Of the last minute; None where nothing was there to measure. Seconds."""

    requests_per_s: float = 0.0
    errors_per_s: float = 0.0
    input_tokens_per_s: float = 0.0
    output_tokens_per_s: float = 0.0
    first_token_s: float | None = None
    """Mean time to the first token of a stream."""
    answer_s: float | None = None
    """Mean time of a whole answer."""
    stream_tokens_per_s: float | None = None
    """How fast one stream is written, on average, behind its first token."""


NO_RATES = Rates()


class Point(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One bucket of a history, as an array in this order."""

    tick: int
    """When it began, in buckets."""
    requests: int
    errors: int
    output_tokens: int
    first_token_s: float | None
    worst_first_token_s: float | None
    answer_s: float | None


class Series:
    """The buckets of one model, one target, or all."""

    __slots__ = ("_buckets", "_by_attempt", "_points")

    def __init__(self, *, by_attempt: bool = False) -> None:
        """``by_attempt``: its errors are failed attempts, not what clients got."""
        self._buckets: deque[Bucket] = deque(maxlen=WINDOW_BUCKETS)
        self._points: deque[Point] = deque(maxlen=BUCKETS - 1)
        """Of buckets that are over: whoever looks twice gets the same ones."""
        self._by_attempt = by_attempt

    def add(self, bucket: Bucket) -> None:
        """Count what ``bucket`` counted; none older than the newest so far."""
        buckets = self._buckets
        if not buckets or buckets[-1].tick != bucket.tick:
            if buckets:
                self._points.append(self._point(buckets[-1]))
            buckets.append(Bucket(bucket.tick))
        buckets[-1].add(bucket)

    def rates(self, now: float, since: float) -> Rates:
        """Of the last minute, or of the time ``since`` the start where that is less."""
        first = int(now / BUCKET_S) - WINDOW_BUCKETS + 1
        total = Bucket(first)
        for bucket in reversed(self._buckets):
            if bucket.tick < first:
                break
            total.add(bucket)
        if not total.requests + total.failures:
            return NO_RATES
        span_s = max(BUCKET_S, now - max(since, first * BUCKET_S))
        return Rates(
            requests_per_s=total.requests / span_s,
            errors_per_s=(total.failures if self._by_attempt else total.errors) / span_s,
            input_tokens_per_s=total.input_tokens / span_s,
            output_tokens_per_s=total.output_tokens / span_s,
            first_token_s=_mean(total.first_token_s, total.first_tokens),
            answer_s=_mean(total.answer_s, total.answers),
            stream_tokens_per_s=_mean(total.streamed_tokens, total.writing_s),
        )

    def history(self, now: float) -> tuple[Point, ...]:
        """The buckets of the last five minutes in which anything ended, the oldest first."""
        if not self._buckets:
            return ()
        first = int(now / BUCKET_S) - BUCKETS + 1
        points = (*self._points, self._point(self._buckets[-1]))
        return points if points[0].tick >= first else tuple(p for p in points if p.tick >= first)

    def _point(self, bucket: Bucket) -> Point:
        streams = bucket.first_tokens
        return Point(
            bucket.tick,
            bucket.requests,
            bucket.failures if self._by_attempt else bucket.errors,
            bucket.output_tokens,
            _mean(bucket.first_token_s, streams),
            bucket.worst_s if streams else None,
            _mean(bucket.answer_s, bucket.answers),
        )


class Error(msgspec.Struct):
    """Something that went wrong, or the same several times in a few seconds."""

    what: str
    """``request``: a client got an error; ``attempt``: one target failed, and another may have answered; ``target``:
    it was ejected; ``engine``: its process died; ``usage``: records were lost."""
    kind: str
    """The code of the error or of the fault, or the state that was entered."""
    first_at: float
    at: float
    """The latest. Seconds since the epoch, both."""
    count: int = 1
    model: str = ""
    target: str = ""
    """The target, or the engine."""
    request_id: str = ""
    """Of the latest."""
    key_id: str = ""
    status: int | None = None
    """What the client got."""
    detail: str = ""


class Totals(msgspec.Struct):
    """Since the start."""

    requests: int = 0
    errors: int = 0
    client_gone: int = 0
    """Clients that left before their answer's end; no errors."""
    limited: int = 0
    """Requests that a key's limits or budget refused; they never became one of the above."""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0


class Recent(Hearer):
    """A listener of events that remembers a little."""

    def __init__(self, models: Iterable[str], targets: Iterable[str], clock: Clock) -> None:
        """``models`` and ``targets`` are the names that get a series."""
        self._clock = clock
        self.since = clock.now()
        self.totals = Totals()
        self.all = Series()
        self.models: Mapping[str, Series] = {name: Series() for name in models}
        self.targets: Mapping[str, Series] = {name: Series(by_attempt=True) for name in targets}
        self.starts: dict[str, int] = {}
        """How often an engine's process was started."""
        self._tick = 0
        """Of the open buckets."""
        self._open: dict[tuple[str, str], Bucket] = {}
        """By model and target; each pair is there once at most, whatever names events bring."""
        self._errors: deque[Error] = deque()
        self._latest: dict[tuple[str, str, str, str], Error] = {}
        """Those of `_errors` that more of the same may join."""
        self.hears = {
            RequestDone: self._request,
            AttemptDone: self._attempt,
            TargetState: self._target,
            NodeState: self._node,
            LimitDecision: self._limit,
            UsageLost: self._usage_lost,
        }

    def share_out(self) -> None:
        """Give what the open buckets counted to the series and the totals. To be called before these are read."""
        totals = self.totals
        for (model, target), bucket in self._open.items():
            for series in (self.all, self.models.get(model), self.targets.get(target)):
                if series is not None:
                    series.add(bucket)
            totals.requests += bucket.requests
            totals.errors += bucket.errors
            totals.client_gone += bucket.gone
            totals.input_tokens += bucket.input_tokens
            totals.output_tokens += bucket.output_tokens
            totals.cost_usd += bucket.cost_usd
        self._open.clear()

    @property
    def errors(self) -> tuple[Error, ...]:
        """The latest first."""
        return tuple(sorted(self._errors, key=lambda error: error.at, reverse=True))

    def _bucket(self, model: str, target: str) -> Bucket:
        """The open bucket of a model and a target."""
        tick = int(self._clock.now() / BUCKET_S)
        if tick != self._tick:
            self.share_out()
            self._tick = tick
        bucket = self._open.get((model, target))
        if bucket is None:
            bucket = self._open[model, target] = Bucket(tick)
        return bucket

    def _request(self, done: RequestDone) -> None:
        self._bucket(done.model, done.target).count(done)
        if done.outcome not in _NO_ERROR:
            error = self._error("request", done.outcome, done.model, done.target)
            error.request_id = done.request_id
            error.key_id = done.key_id
            error.status = done.status

    def _attempt(self, done: AttemptDone) -> None:
        fault = done.fault
        if fault is None or fault in FINAL:  # of a final one the request says the same
            return
        if fault not in BLAMELESS:
            self._bucket(done.model, done.target).failures += 1
        self._error("attempt", fault.value, done.model, done.target).request_id = done.request_id

    def _target(self, event: TargetState) -> None:
        if event.state == "ejected":
            self._error("target", "ejected", target=event.target).detail = event.reason[:MOST_CHARS]

    def _node(self, event: NodeState) -> None:
        if event.state == "starting":
            self.starts[event.engine] = self.starts.get(event.engine, 0) + 1
        elif event.state in {"backoff", "failed"}:
            error = self._error("engine", event.state, target=event.engine)
            error.detail = event.detail[:MOST_CHARS]

    def _limit(self, _: LimitDecision) -> None:
        self.totals.limited += 1

    def _usage_lost(self, event: UsageLost) -> None:
        self._error("usage", "usage_lost").key_id = event.key_id

    def _error(self, what: str, kind: str, model: str = "", target: str = "") -> Error:
        """The line of an error that happens now."""
        kind = kind[:MOST_CHARS]
        at, group = self._clock.wall(), (what, kind, model, target)
        error = self._latest.get(group)
        if error is not None and 0 <= at - error.first_at < SAME_S:
            error.count += 1
            error.at = at
            return error
        error = Error(what, kind, at, at, model=model, target=target)
        self._errors.append(error)
        self._latest[group] = error
        if len(self._errors) > MOST_ERRORS:
            old = self._errors.popleft()
            group = (old.what, old.kind, old.model, old.target)
            if self._latest.get(group) is old:
                del self._latest[group]
        return error


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None
