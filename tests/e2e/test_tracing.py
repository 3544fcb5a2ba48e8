"""Traces over real sockets: a client's headers come in, providers hear the attempt's, a collector gets the spans."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from types import SimpleNamespace

import aiohttp
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Wire
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from engines.simulated.engine import SimulatedEngine
from engines.specs import SimulatedSpec
from router.app import Router
from router.config.reader import parse
from router.load import FirstTokens
from tests import upstream as up
from tests.e2e.serving import KEYS, PORTS, SECRET, served_by, site, upstream_config
from tests.e2e.test_recovery import WHOLE, writes

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {
    "authorization": f"Bearer {SECRET}",
    "traceparent": f"00-{TRACE}-{PARENT}-01",
    "tracestate": "vendor=opaque",
}
BODY = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "a secret prompt"}]}
ERROR = 2


class Span(SimpleNamespace):
    """A span as it came to the collector."""

    @classmethod
    def of(cls, wire, service):
        found = {one.key: _value(one.value) for one in wire.attributes}
        return cls(
            name=wire.name, kind=Wire.SpanKind.Name(wire.kind).removeprefix("SPAN_KIND_"), service=service,
            trace=wire.trace_id.hex(), id=wire.span_id.hex(), parent=wire.parent_span_id.hex(),
            state=wire.trace_state, at=found, failed=wire.status.code == ERROR,
            start=wire.start_time_unix_nano, end=wire.end_time_unix_nano,
            events=[(one.name, {a.key: _value(a.value) for a in one.attributes}) for one in wire.events],
        )  # fmt: skip

    @property
    def traceparent(self):
        return f"00-{self.trace}-{self.id}-"

    @property
    def fine(self):
        return not self.failed and "error.type" not in self.at


def _value(value):
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)


class Collector(up.Upstream):
    """Takes OTLP over HTTP."""

    def __init__(self):
        super().__init__(default=up.json_answer(b"{}"))

    @property
    def endpoint(self):
        return self.url.replace("/v1", "/v1/traces")

    @property
    def raw(self):
        return b"".join(_body(seen) for seen in self.requests)

    @property
    def spans(self):
        found = []
        for seen in self.requests:
            assert seen.line.startswith("POST /v1/traces ")
            for resource in ExportTraceServiceRequest.FromString(_body(seen)).resource_spans:
                names = {one.key: _value(one.value) for one in resource.resource.attributes}
                for scope in resource.scope_spans:
                    found += [Span.of(one, names["service.name"]) for one in scope.spans]
        return sorted(found, key=lambda span: (span.start, span.kind != "SERVER"))

    def tree(self):
        """The request's span and its attempts', which are joined."""
        (request,) = [span for span in self.spans if span.kind == "SERVER"]
        attempts = [span for span in self.spans if span.kind == "CLIENT"]
        assert len(attempts) + 1 == len(self.spans)
        for one in attempts:
            assert (one.parent, one.trace) == (request.id, request.trace)
            assert request.start <= one.start <= one.end <= request.end
        return request, attempts


def _body(seen):
    packed = seen.headers.get("content-encoding") == "gzip"
    return gzip.decompress(seen.body) if packed else seen.body


@pytest.fixture
async def collector():
    async with Collector() as made:
        yield made


def traced(collector, *urls, extra=""):
    tracing = f"tracing: {{endpoint: {collector.endpoint!r}, headers: {{x-token: t0ken}}}}\n"
    return site(upstream_config(*urls, extra=extra + tracing))


async def ask(served, headers=HEADERS, **fields):
    """Status and text of an answer."""
    async with aiohttp.ClientSession() as session:
        url = f"{served.base_url}/chat/completions"
        async with session.post(url, json={**BODY, **fields}, headers=headers) as answer:
            return answer.status, (await answer.read()).decode()


async def test_a_request_is_joined_to_its_client_and_its_provider_to_it(collector, caplog):
    async with up.Upstream() as a:
        async with traced(collector, a.url) as served:
            status, _ = await ask(served, {**HEADERS, "x-request-id": "mine"})
        (heard,) = [seen.headers for seen in a.requests]
    assert status == 200
    request, (attempt,) = collector.tree()
    assert (request.trace, request.parent, request.service) == (TRACE, PARENT, "nenya")
    assert request.name == "chat m"
    assert attempt.name == "chat up"
    assert request.at.items() >= {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.request.stream": True,
        "gen_ai.provider.name": "a", "gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 4, "http.request.method": "POST",
        "http.route": "/v1/chat/completions", "http.response.status_code": 200,
        "nenya.request_id": "mine", "nenya.key_id": "dev", "nenya.outcome": "ok", "nenya.attempts": 1,
    }.items()  # fmt: skip
    assert attempt.at.items() >= {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "up", "gen_ai.response.model": "up",
        "gen_ai.provider.name": "a", "gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 3,
        "server.address": "127.0.0.1", "server.port": a.port, "nenya.target": "a/up", "nenya.attempt": 1,
        "nenya.attempt.reason": "first", "nenya.attempt.outcome": "ok",
    }.items()  # fmt: skip
    assert attempt.at["gen_ai.response.finish_reasons"] == ["stop"]
    assert 0 < attempt.at["gen_ai.response.time_to_first_chunk"] < 5
    assert [name for name, _ in attempt.events] == ["nenya.first_token"]
    assert request.fine
    assert attempt.fine
    assert heard["traceparent"] == attempt.traceparent + "01"
    assert heard["tracestate"] == "vendor=opaque"
    assert served.done[0].trace_id == TRACE
    assert {seen.headers["x-token"] for seen in collector.requests} == {"t0ken"}
    for secret in (b"secret prompt", b"word0", SECRET.encode()):
        assert secret not in collector.raw


async def test_without_a_client_s_trace_a_new_one_begins(collector):
    async with up.Upstream() as a, traced(collector, a.url) as served:
        await ask(served, {**HEADERS, "traceparent": "00-nonsense-1-01"}, stream=False)
    request, (attempt,) = collector.tree()
    assert request.parent == ""
    assert request.trace not in {TRACE, "0" * 32}
    assert a.requests[0].headers["traceparent"].startswith(attempt.traceparent)
    assert "tracestate" not in a.requests[0].headers
    assert attempt.at["gen_ai.response.finish_reasons"] == ["stop"]
    for attribute in ("gen_ai.request.stream", "gen_ai.response.time_to_first_chunk"):
        assert attribute not in request.at | attempt.at
    assert [name for name, _ in attempt.events] == ["nenya.first_token"]


async def test_who_is_not_sampled_is_not_sent_and_says_so_to_the_provider(collector):
    async with up.Upstream() as a, traced(collector, a.url) as served:
        await ask(served, {**HEADERS, "traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert collector.spans == []
    version, trace, _, flags = a.requests[0].headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "00")


async def test_a_retry_is_another_attempt(collector):
    async with up.Upstream(up.status(503)) as a, up.Upstream() as b:
        async with traced(collector, a.url, b.url) as served:
            assert (await ask(served))[0] == 200
        heard = [seen.headers["traceparent"] for seen in (*a.requests, *b.requests)]
    request, (first, second) = collector.tree()
    assert heard == [first.traceparent + "01", second.traceparent + "01"]
    assert (first.at["nenya.attempt.reason"], first.at["nenya.attempt"]) == ("first", 1)
    assert (second.at["nenya.attempt.reason"], second.at["nenya.attempt"]) == ("retry", 2)
    assert first.at["error.type"] == first.at["nenya.attempt.outcome"] == "server_error"
    assert first.at["http.response.status_code"] == 503
    assert (first.failed, second.fine, request.fine) == (True, True, True)
    retried = ("nenya.retry", {"nenya.target": "a/up", "nenya.reason": "server_error"})
    assert retried in request.events


async def test_a_hedge_and_what_lost_against_it(collector):
    async with up.Upstream() as a, up.Upstream() as b:
        hedging = "retry: {hedge_share: 1}\n"
        async with traced(collector, a.url, b.url, extra=hedging) as served:
            for _ in range(2 * FirstTokens.FEW):
                await ask(served)
            gate = asyncio.Event()
            a.default = up.waits(gate, up.normal())
            for _ in range(2):  # one of two asks a first
                await ask(served)
        hedged = [one for one in served.done if one.attempts == 2]
    spans = {span.id: span for span in collector.spans}
    assert hedged
    (hedge, *_) = [one for one in spans.values() if one.at.get("nenya.attempt.reason") == "hedge"]
    request = spans[hedge.parent]
    (lost,) = [one for one in spans.values() if one.parent == request.id and one is not hedge]
    assert (lost.at["nenya.target"], hedge.at["nenya.target"]) == ("a/up", "b/up")
    assert (lost.at["nenya.attempt.outcome"], hedge.at["nenya.attempt.outcome"]) == (
        "cancelled", "ok",
    )  # fmt: skip
    assert lost.start < hedge.start < lost.end
    assert lost.fine
    assert ("nenya.hedge", {"nenya.target": "b/up", "nenya.outcome": "won"}) in request.events


async def test_the_rest_of_a_broken_stream_is_an_attempt_too(collector):
    async with up.Upstream(up.cut(2)) as a, up.Upstream(writes()) as b:
        async with traced(collector, a.url, b.url) as served:
            _, text = await ask(served)
    assert "".join(_texts(text)) == WHOLE
    request, (broken, rest) = collector.tree()
    assert broken.at["error.type"] in {"stream_cut", "connection_reset"}
    assert [name for name, _ in broken.events] == ["nenya.first_token"]
    assert rest.at["nenya.attempt.reason"] == "recovery"
    assert rest.at["gen_ai.response.model"] == "other"
    assert rest.at["gen_ai.response.finish_reasons"] == ["stop"]
    assert rest.at["nenya.attempt.outcome"] == "ok"
    told = {"nenya.target": "b/up", "nenya.outcome": "continued"}
    assert ("nenya.recovery", told) in request.events
    assert request.at["nenya.outcome"] == "ok"


async def test_a_client_that_leaves(collector):
    async with up.Upstream(up.stall(1)) as a, traced(collector, a.url) as served:
        async with aiohttp.ClientSession() as session:
            url = f"{served.base_url}/chat/completions"
            async with session.post(url, json=BODY, headers=HEADERS) as answer:
                await answer.content.readany()
        await a.until_gone()
    request, (attempt,) = collector.tree()
    assert request.at["nenya.outcome"] == "client_gone"
    assert request.at["http.response.status_code"] == 499
    assert attempt.at["nenya.attempt.outcome"] == "cancelled"
    assert request.fine
    assert attempt.fine


async def test_refusals_have_a_span_and_no_attempt(collector):
    async with up.Upstream() as a, traced(collector, a.url) as served:
        asked = [
            await ask(served, model="nobody" * 1000),
            await ask(served, temperature="hot"),
            await ask(served, headers={}),  # without a key: a stranger makes no spans
        ]
    assert [status for status, _ in asked] == [404, 400, 401]
    unknown, unread = collector.spans
    assert unknown.at["error.type"] == unknown.at["nenya.outcome"] == "model_not_found"
    assert len(unknown.at["gen_ai.request.model"]) < 300
    assert unread.at["http.response.status_code"] == 400
    assert {one.parent for one in collector.spans} == {PARENT}
    assert {one.name for one in collector.spans} == {"chat"}
    assert [one.failed for one in (unknown, unread)] == [False, False], "they are the client's"


async def test_an_error_of_ours_is_one_of_the_span(collector):
    extra = "retry: {attempts: 1}\n"
    async with up.Upstream(up.status(500)) as a, traced(collector, a.url, extra=extra) as served:
        status, _ = await ask(served)
    request, (attempt,) = collector.tree()
    assert status == 502
    assert request.failed
    assert request.at["error.type"] == "server_error"
    assert attempt.failed


@pytest.fixture
def quitter(monkeypatch):
    """Who gives up on a collector soon, and then says no more of it, in the log of other tests."""
    monkeypatch.setattr("router.tracing.otel.FLUSH_S", 0.05)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    yield
    for thread in threading.enumerate():
        if thread.name == "nenya-traces":
            thread.join()


async def test_a_collector_that_is_away_costs_no_request_and_little_of_the_end(quitter, caplog):
    nowhere = up.Upstream()
    async with nowhere:
        endpoint = f"http://127.0.0.1:{nowhere.port}/v1/traces"
    async with up.Upstream() as a:
        config = upstream_config(a.url, extra=f"tracing: {{endpoint: {endpoint!r}}}\n")
        async with asyncio.timeout(30), site(config) as served:
            assert (await ask(served))[0] == 200
    assert "prompt" not in caplog.text


async def test_a_collector_that_hangs_doesnt_hold_the_exit(quitter, caplog):
    async with Collector() as hanging, up.Upstream() as a:
        hanging.default = up.silent()
        async with traced(hanging, a.url) as served:
            assert (await ask(served))[0] == 200
    assert "traces could not be sent" in caplog.text


async def test_an_engine_s_attempt_by_an_embedder_s_provider():
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    config = "engines: {e: {kind: simulated}}\nmodels: {m: {targets: [{engine: e}]}}\n"
    router = Router(
        parse(PORTS + KEYS + config, "test", {}),
        engines={"e": SimulatedEngine(SimulatedSpec())},
        tracer_provider=provider,
    )
    async with served_by(router) as served:
        status, text = await ask(served, max_tokens=3, stream=False)
    assert status == 200
    attempt, request = kept.get_finished_spans()
    assert attempt.parent.span_id == request.context.span_id
    assert attempt.attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert attempt.attributes["gen_ai.usage.output_tokens"] == 3
    assert request.attributes["gen_ai.request.max_tokens"] == 3
    assert "server.address" not in attempt.attributes
    assert json.loads(text)["usage"]["completion_tokens"] == 3


async def _heard(*, extra="", provider="", headers=HEADERS):
    """What a provider hears where nobody traces."""
    async with up.Upstream() as a:
        config = upstream_config(a.url, extra=extra)
        config = config.replace(f"base_url: {a.url!r}", f"base_url: {a.url!r}{provider}")
        async with site(config) as served:
            await ask(served, headers)
            assert served.done[0].trace_id is None
    (seen,) = a.requests
    return {
        name: seen.headers[name] for name in ("traceparent", "tracestate") if name in seen.headers
    }


async def test_without_tracing_a_client_s_trace_goes_on_only_where_it_is_to():
    assert await _heard() == {}
    assert await _heard(provider=", trace_headers: false") == {}
    through = ", trace_headers: true"
    untouched = {name: HEADERS[name] for name in ("traceparent", "tracestate")}
    assert await _heard(provider=through) == untouched
    for bad in ("", "00-1-2-3", f"00-{TRACE}-{PARENT}-01-\u00e9"):
        assert await _heard(provider=through, headers={**HEADERS, "traceparent": bad}) == {}
    long = {**HEADERS, "tracestate": "v=" + "x" * 511}
    assert await _heard(provider=through, headers=long) == {"traceparent": HEADERS["traceparent"]}


async def test_a_provider_may_hear_nothing_of_a_trace(collector):
    async with up.Upstream() as a:
        config = upstream_config(
            a.url, extra=f"tracing: {{endpoint: {collector.endpoint!r}}}\n"
        ).replace(f"base_url: {a.url!r}", f"base_url: {a.url!r}, trace_headers: false")
        async with site(config) as served:
            await ask(served)
    assert "traceparent" not in a.requests[0].headers
    collector.tree()


def _texts(text):
    for line in text.split("\n\n"):
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                yield choice["delta"].get("content") or ""
