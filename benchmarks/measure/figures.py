"""What came out of a stage: distributions, rates, shares, and how well the client kept up.

Rates are counted from the time at which answers have begun to end regularly (a median answer's time after the
beginning) to the end of sending, so that neither the filling of the server nor its emptying is taken for slowness.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Sequence

import msgspec

from benchmarks.measure.numbers import BATCHES, mean_of
from benchmarks.measure.records import OK, RATE_LIMITED, UNFINISHED, Record
from benchmarks.measure.slo import Slo
from benchmarks.simulate.measures import percentile

LATE_S = 0.010
"""Sending later than this after the due time, at the 99th percentile, shows in a TTFT of a few hundred milliseconds."""
LATE_SHARE = 0.05
"""Of the median TTFT: below, lateness doesn't matter however large it is."""
LAG_S = 0.025
"""Of the event loop's timers, at the 99th percentile: pieces are stamped that much too late."""
BUSY = 0.85
"""Of one core: above, pieces wait for the client now and then."""


_BOTTLENECK = "the client is a bottleneck"


class Spread(msgspec.Struct, frozen=True):
    """A distribution, in seconds; ``half`` is half the mean's 95 % interval."""

    count: int
    mean: float
    half: float
    p50: float
    p90: float
    p99: float
    most: float


class Client(msgspec.Struct, frozen=True):
    """How well the client kept up. Seconds."""

    slip_p50_s: float
    """From a request's due time to its being sent."""
    slip_p99_s: float
    lag_p99_s: float
    """How late the event loop's timers were."""
    cpu_share: float
    """Of one core."""


class Pace(msgspec.Struct, frozen=True):
    """How fast answers came; a second."""

    answers: float
    tokens: float


class Figures(msgspec.Struct, kw_only=True):
    """One stage."""

    window_s: float
    """The time in which requests were due that are counted."""
    requests: int
    ok: int
    errors: dict[str, int] = {}
    """By kind; without those that were cut off."""
    unfinished: int = 0
    """Cut off because the stage was."""
    offered_rate: float
    """Requests due a second."""
    achieved_rate: float
    """Answers that ended well, a second; each counts as far as it was written in the time that is looked at."""
    goodput_rate: float
    """Those within the objective."""
    good_share: float
    """Of all requests but the unfinished."""
    input_rate: float
    """Prompt tokens a second, of requests that were answered."""
    output_rate: float
    """Answer tokens a second."""
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cached_share: float
    """Of all prompt tokens."""
    tokens_per_piece: float
    by_usage: bool
    """All tokens were counted by the server."""
    concurrency: float
    """Requests in the server, on average."""
    ttft: Spread | None
    """Since due."""
    ttft_sent: Spread | None
    """Since sent."""
    tpot: Spread | None
    itl: Spread | None = None
    e2e: Spread | None
    client: Client | None = None


def figures(
    records: Sequence[Record],
    slo: Slo,
    *,
    duration_s: float,
    warmup_s: float = 0.0,
    client: Client | None = None,
) -> Figures:
    """The figures of requests due between ``warmup_s`` and ``duration_s``."""
    due = sorted((one for one in records if one.due_s >= warmup_s), key=lambda one: one.due_s)
    ok = [one for one in due if one.outcome == OK]
    failed = Counter(one.outcome for one in due if one.outcome not in {OK, UNFINISHED})
    judged = len(ok) + failed.total()
    good = [one for one in ok if slo.good(one)]
    window_s = max(duration_s - warmup_s, 1e-9)
    begin, end = _steady(ok, warmup_s, duration_s)
    tokens = sum(one.input_tokens for one in ok)
    output, pieces = sum(one.output_tokens for one in ok), sum(one.pieces for one in ok)
    cached = sum(one.cached_tokens for one in ok)
    achieved = _rate(ok, begin, end)
    written = _written(due, begin, end)
    return Figures(
        window_s=window_s,
        requests=len(due),
        ok=len(ok),
        errors=dict(sorted(failed.items())),
        unfinished=len(due) - judged,
        offered_rate=len(due) / window_s,
        achieved_rate=achieved,
        goodput_rate=achieved * len(good) / len(ok) if ok else 0.0,
        good_share=len(good) / judged if judged else 0.0,
        input_rate=achieved * tokens / len(ok) if ok else 0.0,
        output_rate=written / max(end - begin, 1e-9),
        input_tokens=tokens,
        cached_tokens=cached,
        output_tokens=output,
        cached_share=cached / tokens if tokens else 0.0,
        tokens_per_piece=output / pieces if pieces else 0.0,
        by_usage=bool(ok) and all(one.by_usage for one in ok),
        concurrency=_overlap(due, warmup_s, duration_s) / window_s,
        ttft=spread([one.ttft_s for one in ok]),
        ttft_sent=spread(
            [None if one.first_s is None else one.first_s - one.begun_s for one in ok]
        ),
        tpot=spread([one.tpot_s for one in ok]),
        itl=spread([gap for one in ok for gap in one.gaps_s]),
        e2e=spread([one.e2e_s for one in ok]),
        client=client,
    )


def paces(records: Sequence[Record], warmup_s: float, duration_s: float) -> list[Pace]:
    """How fast answers came in BATCHES consecutive parts of the time that rates are counted in."""
    ok = [one for one in records if one.outcome == OK]
    begin, end = _steady(ok, warmup_s, duration_s)
    width = (end - begin) / BATCHES
    edges = [begin + number * width for number in range(BATCHES + 1)]
    return [
        Pace(_rate(ok, low, high), _written(records, low, high) / max(width, 1e-9))
        for low, high in itertools.pairwise(edges)
    ]


def spread(values: Sequence[float | None]) -> Spread | None:
    """The distribution of ``values``, in order of time; None of nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    ordered = sorted(known)
    mean = mean_of(known)
    p50, p90, p99 = (percentile(ordered, share) for share in (0.5, 0.9, 0.99))
    return Spread(len(known), mean.mean, mean.half, p50, p90, p99, ordered[-1])


def client_of(records: Sequence[Record], lags_s: Sequence[float], cpu_share: float) -> Client:
    """How well the client kept up with requests that were sent."""
    slips = sorted(one.begun_s - one.due_s for one in records) or [0.0]
    lags = sorted(lags_s) or [0.0]
    return Client(
        percentile(slips, 0.5), percentile(slips, 0.99), percentile(lags, 0.99), cpu_share
    )


def warnings(found: Figures) -> list[str]:
    """What makes the figures doubtful."""
    told = []
    client = found.client
    if client is not None:
        ttft = found.ttft.p50 if found.ttft is not None else 0.0
        slip, lag = 1000 * client.slip_p99_s, 1000 * client.lag_p99_s
        if client.slip_p99_s > max(LATE_S, LATE_SHARE * ttft):
            told.append(f"{_BOTTLENECK}: 1 % of requests went out {slip:.0f} ms late or more")
        if client.lag_p99_s > LAG_S:
            told.append(f"{_BOTTLENECK}: 1 % of its timers were {lag:.0f} ms late or more")
        if client.cpu_share > BUSY:
            told.append(f"{_BOTTLENECK}: it took {client.cpu_share:.0%} of a core")
    if limited := found.errors.get(RATE_LIMITED, 0):
        told.append(
            f"{limited} requests met a rate limit (429): this measures the limit, not the server"
        )
    if found.ok and not found.by_usage:
        told.append(
            "the server doesn't report usage: tokens are pieces of the answer, which may hold several, "
            "and prompts are as long as they were asked to be"
        )
    elif found.tokens_per_piece > 1.2:
        told.append(
            f"a piece holds {found.tokens_per_piece:.1f} tokens on average: ITL is between pieces, not tokens"
        )
    return told


def _steady(ok: Sequence[Record], warmup_s: float, duration_s: float) -> tuple[float, float]:
    """The time in which answers end as often as they begin, if they ever do."""
    if not ok:
        return warmup_s, duration_s
    median = statistics.median(one.e2e_s for one in ok)
    begin = warmup_s + median
    if begin > (warmup_s + duration_s) / 2 or not _rate(ok, begin, duration_s):
        return warmup_s, max(duration_s, *(one.end_s for one in ok))
    return begin, duration_s


def _rate(ok: Sequence[Record], begin: float, end: float) -> float:
    """Answers a second, each as far as it was written then: whole ones alone would come and go in waves."""
    return math.fsum(_share(one, begin, end) for one in ok) / max(end - begin, 1e-9)


def _written(records: Sequence[Record], begin: float, end: float) -> float:
    """Tokens of answers, and of those that broke off, in a time."""
    return math.fsum(one.output_tokens * _share(one, begin, end) for one in records)


def _share(one: Record, begin: float, end: float) -> float:
    """What part of an answer was written in a time, as if it came evenly."""
    if one.first_s is None:
        return 0.0
    length = one.end_s - one.first_s
    if length <= 0:
        return 1.0 if begin < one.first_s <= end else 0.0
    return max(0.0, min(one.end_s, end) - max(one.first_s, begin)) / length


def _overlap(records: Sequence[Record], begin: float, end: float) -> float:
    """Seconds that requests spent in the server, summed."""
    return math.fsum(max(0.0, min(one.end_s, end) - max(one.begun_s, begin)) for one in records)
