"""Tracing where it is off or its package is missing, and what a span says of a request's times, wait and fallback."""

from __future__ import annotations

import subprocess
import sys

import pytest
from msgspec.structs import replace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from router import tracing
from router.app import Router
from router.cli import main
from router.config.reader import parse
from router.config.schema import Model, Target
from router.errors import ConfigError, FaultKind
from router.events import RequestDone
from router.tracing import Arrival, otel
from tests.walks import Script, World, fault

CONFIG = "providers: {p: {base_url: 'http://x.test/v1'}}\nmodels: {m: {targets: [{provider: p}]}}\n"


async def traced(world, sampler=None):
    """What becomes of one request to ``world``: its span, and those of its attempts."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    await asked(world, provider)
    spans = kept.get_finished_spans()
    requests = [one for one in spans if one.kind.name == "SERVER"]
    return next(iter(requests), None), [one for one in spans if one.kind.name == "CLIENT"]


async def asked(world, provider):
    """One request, traced by ``provider``, read two seconds later."""
    made = otel.start(parse(CONFIG), world.clock, provider)
    call = world.call()
    came = Arrival(
        call.request.operation, call.request, call.request_id, "dev", call.received_at, None
    )
    call = replace(call, trace=made.begin(came))
    reply = await world.clock.run(world.dispatcher.open(call))
    world.clock.advance(2)
    while await reply.read():
        pass
    reply.close()


async def test_times_are_the_router_s_own():
    world = World(Script([b"answer"]))
    start = world.clock.wall()
    request, (attempt,) = await traced(world)
    assert request.start_time == attempt.start_time == pytest.approx(start * 1e9, abs=1000)
    assert request.end_time - request.start_time == pytest.approx(2e9, abs=1000)
    assert attempt.end_time == request.end_time
    assert attempt.attributes["nenya.attempt.outcome"] == "ok"


async def test_a_wait_and_a_fallback_are_told():
    world = World(
        Script(fault(FaultKind.SERVER_ERROR)),
        Script([b"fine"]),
        models={
            "m": Model(targets=[Target(provider="a")], fallback=["other"]),
            "other": Model(targets=[Target(provider="b")]),
        },
        attempts=2,
    )
    request, attempts = await traced(world)
    assert [one.attributes["nenya.attempt.reason"] for one in attempts] == [
        "first", "retry", "fallback",
    ]  # fmt: skip
    assert attempts[-1].name == "chat other"
    names = [event.name for event in request.events]
    assert names == ["nenya.retry", "nenya.queued", "nenya.fallback"]
    turned = request.events[-1]
    assert turned.attributes == {
        "nenya.model": "m", "nenya.to": "other", "nenya.reason": "server_error",
    }  # fmt: skip
    assert request.attributes["nenya.attempts"] == 3


async def test_who_is_not_sampled_still_has_an_id_for_the_log():
    world = World(Script([b"answer"]))
    assert await traced(world, ALWAYS_OFF) == (None, [])
    (done,) = world.seen(RequestDone)
    assert len(done.trace_id) == 32
    (order,) = world.scripts["a"].orders
    assert order.headers.startswith(f"traceparent: 00-{done.trace_id}-".encode())


class Broken(SpanProcessor):
    def on_start(self, span, parent_context=None):
        raise RuntimeError("it broke")

    def on_end(self, span):
        raise RuntimeError("it broke")


class BrokenAtTheEnd(Broken):
    def on_start(self, span, parent_context=None):
        pass


@pytest.mark.parametrize("processor", [Broken, BrokenAtTheEnd])
async def test_a_processor_that_breaks_costs_no_request(processor, caplog):
    world = World(Script([b"answer"]))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor())
    await asked(world, provider)
    world.assert_balanced()
    assert world.seen(RequestDone)[0].outcome == "ok"
    assert "a span could not be" in caplog.text


async def test_off_there_is_nothing_of_it():
    world = World(Script([b"answer"]))
    await world.ask()
    assert world.scripts["a"].orders[0].headers == b""
    assert world.seen(RequestDone)[0].trace_id is None
    async with Router(parse(CONFIG)) as router:
        assert router.tracing is None


def test_off_nothing_of_opentelemetry_is_imported():
    code = (
        "import sys, router.server.run, router.cli.serve; sys.exit('opentelemetry' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_without_the_package_the_error_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.setattr(tracing, "_EXPORTER", "opentelemetry_not_here.exporter")
    assert not tracing.is_installed()
    with pytest.raises(ConfigError, match=r"pip install 'nenya\[otel\]'"):
        await Router(parse(CONFIG + "tracing: {}")).start()
    file = tmp_path / "nenya.yaml"
    file.write_text(CONFIG + "tracing: {}")
    assert main(["serve", str(file)]) == 1
    assert "`tracing` needs a package that is not installed" in capsys.readouterr().err


async def test_the_environment_is_followed_where_the_config_is_silent(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "by-env")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    for text, service, recording in (
        ("tracing: {}", "by-env", False),
        ("tracing: {service_name: mine, sample_ratio: 1}", "mine", True),
    ):
        async with Router(parse(CONFIG + text)) as router:
            tracer = router.tracing._tracer
            assert tracer.start_span("x").is_recording() is recording
            resource = tracer.resource.attributes
            assert resource["service.name"] == service
