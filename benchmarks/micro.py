"""What the parts of a request cost by themselves: decoding, keys and limits, a chunk, the metrics, a log line.

    python -m benchmarks.micro [--json FILE]

Microseconds on one core, the best of several rounds: noise only adds. Beside them how many times that is what the
standard library's json takes to read a request of 1 KB and write it again: machines differ less in that. Inside a
server the same code costs about twice as much, for between two of its calls the caches hold other things;
`benchmarks.overhead` measures that.
"""

from __future__ import annotations

import asyncio
import functools
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.running import keep, options
from benchmarks.upstream import events
from router.accounts.accounts import Accounts
from router.accounts.bookkeeper import BATCH
from router.accounts.estimate import request_size
from router.accounts.prices import Tokens
from router.accounts.store import Entry, Store
from router.app import RouteStats, Stats, TargetStats
from router.backends.http.relay import Relay
from router.clock import SystemClock
from router.config.schema import Config, Key, Model, Price, Provider, Target, Tier
from router.counters import OPEN, Histogram, Spread, page
from router.events import Admitted, RequestDone
from router.log import RequestLog, install
from router.metrics import Metrics
from router.recent import Recent
from router.tracing import Arrival, Sent, Tracing, is_installed, start
from router.wire import rewrite
from router.wire.chat import decode_chat

ROUNDS = 7
ROUND_S = 0.05
"""Long enough that reading the clock doesn't show."""
SECRET = "sk-micro-0123456789"
DONE = RequestDone(
    request_id="req_0123456789ab00000001", key_id="me", model="m", target="up/m", provider="up", streaming=True,
    outcome="ok", status=200, attempts=1, duration_s=1.2345678, first_token_s=0.1234567, input_tokens=200,
    cached_input_tokens=None, output_tokens=64, overhead_s=0.0001234, cost_usd=0.000033,
)  # fmt: skip
STATS = Stats(
    0, (TargetStats("up/m", ("m",), "up", "admitting", 0),), routes=(RouteStats("m", "headroom", {}, Spread(())),)
)  # fmt: skip
ADMITTED = Admitted("me", "m", "key", ("requests", "tokens"))
SMALL = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'


class Cost(msgspec.Struct, frozen=True):
    """Of one part."""

    part: str
    cost_us: float
    ratio: float
    """To the yardstick's."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = options("micro", __doc__)
    arguments = parser.parse_args(argv)
    costs = asyncio.run(_costs())
    print(f"{'':40}{'µs':>9}{'of json':>9}")
    for one in costs:
        print(f"{one.part:40}{one.cost_us:9.2f}{one.ratio:9.3f}")
    keep(costs, arguments.json)
    return 0


async def _costs() -> list[Cost]:
    """In a loop, as they run: a log line waits for its moment there."""
    body = _body(1)
    yardstick = _best(lambda: json.dumps(json.loads(body)))
    measured = [("the standard library's json, 1 KB", yardstick)]
    measured += [(name, _best(act)) for name, act in _parts()]
    return [Cost(name, cost_us, cost_us / yardstick) for name, cost_us in measured]


def _parts() -> Iterator[tuple[str, Callable[[], object]]]:
    for size, body in (("1 KB", _body(1)), ("1 MB", _body(1000))):
        yield f"decode a request of {size}", partial(decode_chat, body)
        request = decode_chat(body)
        rename = partial(rewrite.pieces_for_upstream, request, body, "other", ask_usage=False)
        yield f"put another model's name into {size}", rename
    yield from _accounts()
    first, *chunks = events()
    relay = Relay(hide_usage=True)
    relay.feed(first)
    yield "relay a chunk, cutting its usage out", lambda: relay.feed(chunks[0])
    stream = b"".join(events())
    yield "relay 64 chunks that came at once", lambda: Relay(hide_usage=False).feed(stream)
    yield from _metrics()
    recent = Recent(["m"], ["up/m"], SystemClock())
    yield "page: a request's end", lambda: recent(DONE)
    for style in ("json", "human"):
        install("info", style, io.StringIO())
        log = RequestLog()
        yield f"log: a request's line ({style})", partial(log, DONE)
    install("warning", "json", io.StringIO())
    yield "log: a request's line, level off", lambda: log(DONE)
    if is_installed():
        yield "trace a request and its attempt", _traced
        yield "the same, not sampled", partial(_traced, "00")


def _metrics() -> Iterator[tuple[str, Callable[[], object]]]:
    metrics = Metrics(lambda: STATS)

    def count() -> None:
        metrics(ADMITTED)
        metrics(DONE)

    yield "metrics: a request's events", count
    many = Histogram("seconds", "Time", ("model", "target", "error"), buckets=range(18))
    for number in range(200):
        many.labels(f"m{number}", f"up/m{number}", "").observe(number)
    yield "metrics: copy 200 histograms", many.take
    taken = [many.take()]
    yield "metrics: write 200 histograms", lambda: page(taken, OPEN)


def _accounts() -> Iterator[tuple[str, Callable[[], object]]]:
    config = Config(
        models={"m": Model(targets=[Target(provider="up")], price=Price(input=0.1, output=0.2))},
        providers={"up": Provider(base_url="http://127.0.0.1:1/v1")},
        tiers={"large": Tier(rpm=10**8, tpm=10**11)},
        keys=[Key(id="me", secret=SECRET, tier="large")],
    )
    accounts = Accounts(config, lambda name: name, clock=SystemClock(), emit=lambda _: None)
    body = _body(1)
    size, used, clock = request_size(decode_chat(body), body), Tokens(200, None, 64), SystemClock()
    pair = accounts.pair("me", "m")
    assert pair is not None, "it has limits"
    yield "check a key", lambda: accounts.authenticate(f"Bearer {SECRET}")
    yield (
        "admit by two limits, and settle",
        lambda: accounts.admit(pair, size).settle(used, clock.now()),
    )
    batch = [Entry(clock.wall(), DONE, 33_000)] * BATCH
    with tempfile.TemporaryDirectory() as folder, Store(str(Path(folder, "nenya.db"))) as store:
        yield f"write {BATCH} records of usage", lambda: store.book(batch, usage=True)


@functools.cache
def _tracing() -> Tracing:
    """Spans that are batched, and dropped where they would be sent."""
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - where it is installed
    from opentelemetry.sdk.trace.export import (  # noqa: PLC0415
        BatchSpanProcessor,
        SpanExporter,
        SpanExportResult,
    )

    class Nowhere(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            del spans
            return SpanExportResult.SUCCESS

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    config = Config(models={"m": Model(targets=[Target(provider="up")])})
    made = start(config, SystemClock(), provider)
    assert made is not None, "a provider was given"
    return made


def _traced(flags: str = "01") -> None:
    request = decode_chat(SMALL)
    headers = {"traceparent": f"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}"}
    now = time.monotonic()
    came = Arrival(request.operation, request, DONE.request_id, "me", now, headers)
    trace = _tracing().begin(came)
    attempt = trace.attempt(Sent("up/m", "up", "m", 1, "first", now))
    attempt.end(None, None, now, good=True)
    trace.end(DONE)


def _body(kilobytes: int) -> bytes:
    text = "Tell me something about load balancing. " * (25 * kilobytes)
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": "m", "messages": messages, "max_tokens": 64}).encode()


def _best(act: Callable[[], object]) -> float:
    """Microseconds of one call."""
    act()
    best = float("inf")
    for _ in range(ROUNDS):
        count, started = 0, time.perf_counter()
        while (spent := time.perf_counter() - started) < ROUND_S:
            for _ in range(10):
                act()
            count += 10
        best = min(best, spent / count)
    return best * 1e6


if __name__ == "__main__":
    sys.exit(main())
