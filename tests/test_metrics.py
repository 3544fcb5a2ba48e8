"""What Prometheus sees."""

import asyncio
import threading
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain

from engines.base import EngineInfo, Health
from router.app import EngineStats, LineStats, RouteStats, Stats, TargetStats
from router.counters import Spread
from router.decisions import MATCH_BUCKETS
from router.errors import FaultKind
from router.events import (
    Admitted,
    AttemptDone,
    Fallback,
    Generated,
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
from router.metrics import Metrics, buckets
from router.metrics.lag import EVERY_S, LoopLag
from router.metrics.listener import MAX_CACHED, WAITING
from router.metrics.names import OUTCOMES
from router.metrics.state import STATES
from router.policy.quota import Gauge

OPEN = "application/openmetrics-text; version=1.0.0"


DONE = RequestDone(
    request_id="req_1", key_id="me", model="m", target="t", provider="p", streaming=True, outcome="ok", status=200,
    attempts=1, duration_s=2.1, first_token_s=0.1, input_tokens=100, cached_input_tokens=40, output_tokens=21,
    overhead_s=0.0004,
)  # fmt: skip


def target(name: str, state: str = "admitting", inflight: int = 0, **more) -> TargetStats:
    return TargetStats(name, ("m",), {"t": "p", "u": "q"}[name], state, inflight, **more)


def route(model: str, **decisions: int) -> RouteStats:
    return RouteStats(model, "headroom", decisions, Spread(MATCH_BUCKETS))


def stats(*targets: TargetStats, **more) -> Stats:
    more.setdefault("routes", (route("m"), route("n")))
    return Stats(0, targets or (target("t"), target("u")), **more)


def make(*targets: TargetStats, **more) -> Metrics:
    return Metrics(lambda: stats(*targets, **more))


def samples(metrics: Metrics) -> dict[tuple[str, frozenset], float]:
    _, page = metrics.render()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in plain(page.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[name, frozenset(labels.items())]


GENAI = {"operation": "chat", "provider": "p", "request_model": "m"}


def test_a_request_is_counted_in_every_series():
    metrics = make()
    metrics(DONE)
    metrics(msgspec.structs.replace(DONE, streaming=False))
    assert value(metrics, "nenya_requests_total", model="m", target="t", outcome="ok") == 2
    assert value(metrics, "nenya_tokens_total", model="m", provider="p", type="input") == 200
    assert value(metrics, "nenya_tokens_total", model="m", provider="p", type="cached_input") == 80
    assert value(metrics, "nenya_tokens_total", model="m", provider="p", type="output") == 42
    assert (
        value(metrics, "gen_ai_server_request_duration_seconds_count", **GENAI, error_type="") == 2
    )
    assert value(
        metrics, "gen_ai_server_request_duration_seconds_sum", **GENAI, error_type=""
    ) == pytest.approx(4.2)
    assert value(metrics, "gen_ai_server_time_to_first_token_seconds_count", **GENAI) == 1
    assert value(
        metrics, "gen_ai_server_time_to_first_token_seconds_sum", **GENAI
    ) == pytest.approx(0.1)
    assert value(
        metrics, "gen_ai_server_time_per_output_token_seconds_sum", **GENAI
    ) == pytest.approx(0.1)
    assert value(
        metrics, "nenya_output_tokens_per_second_sum", model="m", provider="p"
    ) == pytest.approx(10)
    assert value(metrics, "nenya_overhead_seconds_count") == 2


def test_a_request_that_never_came_far():
    metrics = make()
    metrics(
        msgspec.structs.replace(
            DONE, target="", provider="", outcome="model_unavailable", status=503, attempts=0, first_token_s=None,
            input_tokens=None, cached_input_tokens=None, output_tokens=None, overhead_s=None,
        )
    )  # fmt: skip
    labels = {**GENAI, "provider": "none", "error_type": "model_unavailable"}
    assert (
        value(
            metrics, "nenya_requests_total", model="m", target="none", outcome="model_unavailable"
        )
        == 1
    )
    assert value(metrics, "gen_ai_server_request_duration_seconds_count", **labels) == 1
    assert value(metrics, "nenya_overhead_seconds_count") == 0
    assert (
        value(
            metrics,
            "gen_ai_server_time_to_first_token_seconds_count",
            **{**GENAI, "provider": "none"},
        )
        == 0
    )


@pytest.mark.parametrize(("tokens", "duration_s"), [(0, 1.0), (1, 1.0), (5, 0.1)])
def test_no_speed_without_time_or_tokens(tokens, duration_s):
    metrics = make()
    metrics(msgspec.structs.replace(DONE, output_tokens=tokens, duration_s=duration_s))
    assert value(metrics, "nenya_output_tokens_per_second_count", model="m", provider="p") == 0


def test_costs_decisions_and_lost_records():
    metrics = make()
    metrics(msgspec.structs.replace(DONE, cost_usd=0.25))
    metrics(msgspec.structs.replace(DONE, cost_usd=0.5))
    metrics(Admitted("me", "m", "key", ("requests", "tokens")))
    metrics(Admitted("me", "m", "key", ("tokens",)))
    metrics(LimitDecision("me", "m", "key", "tokens", "refused"))
    metrics(UsageLost("me"))
    labels = {"scope": "key", "resource": "tokens"}
    assert value(metrics, "nenya_cost_usd_total", model="m", provider="p") == 0.75
    assert value(metrics, "nenya_ratelimit_decisions_total", **labels, outcome="admitted") == 2
    assert value(metrics, "nenya_ratelimit_decisions_total", **labels, outcome="refused") == 1
    assert value(metrics, "nenya_usage_records_dropped_total") == 1


def test_attempts_retries_and_ejections():
    metrics = make()
    metrics(AttemptDone("m", "t", "p", 0.5, FaultKind.CONNECT))
    metrics(AttemptDone("m", "u", "q", 1.5, None))
    metrics(Retry("t", FaultKind.CONNECT))
    metrics(RetryRefused("m", "t", FaultKind.RESET))
    metrics(TargetState("t", "ejected", "connect_failed"))
    metrics(TargetState("t", "probing", "probe"))
    metrics(TargetState("t", "ejected", "who knows"))
    metrics(NodeState("e", "ready"))
    name = "gen_ai_client_operation_duration_seconds_sum"
    assert value(metrics, name, **GENAI, error_type="connect_failed", target="t") == 0.5
    assert value(metrics, name, **{**GENAI, "provider": "q"}, error_type="", target="u") == 1.5
    assert value(metrics, "nenya_retries_total", target="t", reason="connect_failed") == 1
    assert value(metrics, "nenya_retries_refused_total", model="m", reason="connection_reset") == 1
    assert value(metrics, "nenya_target_ejections_total", target="t", reason="connect_failed") == 1
    assert value(metrics, "nenya_target_ejections_total", target="t", reason="other") == 1


def test_load_and_states_are_those_of_the_scrape():
    metrics = make(
        target("t", "probing", 3, pending_tokens=900, speed_ratio=0.5),
        target("u", "unavailable", 0),
    )
    assert value(metrics, "nenya_target_pending_tokens", target="t") == 900
    assert value(metrics, "nenya_target_speed_ratio", target="t") == 0.5
    assert value(metrics, "nenya_target_speed_ratio", target="u") == 1
    assert value(metrics, "nenya_target_inflight_requests", target="t") == 3
    assert value(metrics, "nenya_target_state", target="t", state="probing") == 1
    assert value(metrics, "nenya_target_state", target="t", state="admitting") == 0
    assert (
        sum(value(metrics, "nenya_target_state", target="u", state=state) for state in STATES) == 1
    )
    assert any(name == "nenya_build_info" for name, _ in samples(metrics))


def test_labels_come_from_closed_sets():
    metrics = make()
    for number in range(2000):
        evil = f'evil-{number}\n"{number}'
        metrics(
            msgspec.structs.replace(
                DONE, model=evil, target=evil, provider=evil, outcome=evil, key_id=evil
            )
        )
        metrics(AttemptDone(evil, evil, evil, 1.0, None))
        metrics(Retry(evil, FaultKind.RESET))
        metrics(TargetState(evil, "ejected", evil))
    _, page = metrics.render()
    assert b"evil" not in page
    assert page.count(b"nenya_requests_total{") == 1
    assert (
        value(metrics, "nenya_requests_total", model="other", target="other", outcome="other")
        == 2000
    )
    assert len(metrics._ended) <= MAX_CACHED


def test_no_request_id_and_no_key_in_a_label():
    metrics = make()
    metrics(msgspec.structs.replace(DONE, request_id="req_canary", key_id="key_canary"))
    assert b"canary" not in metrics.render()[1]


def test_every_fault_has_an_outcome():
    assert {kind.value for kind in FaultKind} <= OUTCOMES


def test_both_formats_parse_and_agree():
    metrics = make(target("t", "admitting", 1))
    metrics(DONE)
    kind, page = metrics.render(OPEN)
    assert kind.startswith("application/openmetrics-text")
    assert page.endswith(b"# EOF\n")
    modern = {s.name: s.value for family in open_metrics(page.decode()) for s in family.samples}
    kind, page = metrics.render("text/html")
    assert kind.startswith("text/plain")
    old = {s.name: s.value for family in plain(page.decode()) for s in family.samples}
    assert modern == old
    assert not [name for name in old if name.endswith("_created")]


def test_names_and_buckets():
    metrics = make(engines=(ENGINE,))
    metrics(DONE)
    metrics(AttemptDone("m", "t", "p", 0.5, None))
    families = {family.name: family for family in open_metrics(metrics.render(OPEN)[1].decode())}
    assert set(families) == {taken.family.name for taken in metrics._take(stats())}

    def bounds(name: str) -> list[float]:
        samples = families[name].samples
        return [float(s.labels["le"]) for s in samples if s.name.endswith("_bucket")][:-1]

    assert bounds("gen_ai_server_request_duration_seconds") == pytest.approx(buckets.DURATION)
    assert bounds("gen_ai_server_time_to_first_token_seconds") == pytest.approx(buckets.FIRST_TOKEN)
    assert bounds("gen_ai_server_time_per_output_token_seconds") == pytest.approx(buckets.PER_TOKEN)
    assert buckets.DURATION[0] == 0.01
    assert buckets.DURATION[-1] == pytest.approx(655.36)


def test_a_page_is_rendered_while_events_come():
    metrics = make()
    stop = threading.Event()
    pages = []

    def render() -> None:
        while not stop.is_set():
            pages.append(metrics.scrape(OPEN)()[1])

    thread = threading.Thread(target=render)
    thread.start()
    for number in range(3000):
        metrics(msgspec.structs.replace(DONE, outcome=sorted(OUTCOMES)[number % len(OUTCOMES)]))
    stop.set()
    thread.join()
    assert pages
    for page in (pages[0], pages[-1]):
        list(open_metrics(page.decode()))


def test_the_routers_state_is_read_by_scrape_and_not_by_the_render():
    reads = []
    metrics = Metrics(lambda: reads.append(1) or stats())
    reads.clear()
    render = metrics.scrape("")
    assert reads == [1]
    render()
    assert reads == [1]


def test_two_metrics_share_nothing():
    one, two = make(), make()
    one(DONE)
    assert (
        "nenya_requests_total",
        frozenset({("model", "m"), ("target", "t"), ("outcome", "ok")}),
    ) not in samples(two)


def test_an_event_costs_little():
    """Once a request, so some ten microseconds; a look-up of labels each time would show."""
    metrics = make()
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(500):
            metrics(DONE)
        best = min(best, (time.perf_counter() - started) / 500)
    assert best < 100e-6


def test_broken_streams_and_what_they_burnt():
    metrics = make()
    metrics(Recovery("t", "continued"))
    metrics(Recovery("unknown", "failed"))
    metrics(msgspec.structs.replace(DONE, burnt_input_tokens=12))
    page = metrics.render()[1].decode()
    assert 'nenya_recoveries_total{outcome="continued",target="t"} 1.0' in page
    assert 'nenya_recoveries_total{outcome="failed",target="other"} 1.0' in page
    assert 'type="input"} 12.0' in page


def test_upstream_limits_are_gauges_of_each_target_and_resource():
    gauge = Gauge("tokens_day", 1000, 400, 51.5)
    seen = samples(make(target("t", quota=(gauge,)), target("u")))
    labels = frozenset({("target", "t"), ("resource", "tokens_day")})
    found = {name: value for (name, where), value in seen.items() if "upstream_" in name}
    assert found == {
        "nenya_upstream_ratelimit_limit": 1000,
        "nenya_upstream_ratelimit_remaining": 400,
        "nenya_upstream_ratelimit_reset_seconds": 51.5,
    }
    assert ("nenya_upstream_ratelimit_limit", labels) in seen


def test_refusals_for_limits_are_counted_by_target():
    metrics = make()
    for fault in (FaultKind.RATE_LIMITED, FaultKind.RATE_LIMITED, FaultKind.CUT, None):
        metrics(AttemptDone("m", "t", "p", 1.0, fault))
    metrics(AttemptDone("m", "t", "p", 1.0, FaultKind.RATE_LIMITED, resource="tokens_day"))
    assert value(metrics, "nenya_upstream_429_total", target="t", resource="unknown") == 2
    assert value(metrics, "nenya_upstream_429_total", target="t", resource="tokens_day") == 1


def test_choices_that_passed_a_target_over():
    metrics = make(target("t", deferrals={"tokens": 5, "requests_day": 1}))
    name = "nenya_ratelimit_deferrals_total"
    assert value(metrics, name, target="t", resource="tokens") == 5
    assert value(metrics, name, target="t", resource="requests_day") == 1


def test_how_requests_were_given_their_targets():
    one = route("m", policy=3, spill=1)
    for share in (0.0, 0.5, 0.55):
        one.matches.observe(share)
    metrics = make(routes=(one,))
    labels = {"model": "m", "policy": "headroom"}
    assert value(metrics, "nenya_routing_decisions_total", **labels, reason="policy") == 3
    assert value(metrics, "nenya_routing_decisions_total", **labels, reason="spill") == 1
    assert value(metrics, "nenya_prefix_match_ratio_bucket", model="m", le="0.0") == 1
    assert value(metrics, "nenya_prefix_match_ratio_bucket", model="m", le="0.5") == 2
    assert value(metrics, "nenya_prefix_match_ratio_count", model="m") == 3


def test_other_operations_and_what_a_model_thought():
    metrics = make()
    metrics(msgspec.structs.replace(DONE, operation="text_completion", reasoning_tokens=5))
    metrics(AttemptDone("m", "t", "p", 0.5, None, operation="embeddings"))
    labels = {**GENAI, "operation": "text_completion"}
    name = "gen_ai_server_request_duration_seconds_count"
    assert value(metrics, name, **labels, error_type="") == 1
    name = "gen_ai_client_operation_duration_seconds_count"
    assert (
        value(metrics, name, **{**GENAI, "operation": "embeddings"}, error_type="", target="t") == 1
    )
    assert value(metrics, "nenya_tokens_total", model="m", provider="p", type="reasoning") == 5


def engine(name: str, state: str, **more) -> EngineStats:
    more = {"loaded": None, "info": None, "health": Health(), **more}
    return EngineStats(name, "simulated", state, "", **more)


INFO = EngineInfo("simulated", "starter", 1024, 4, 4096)
ENGINE = engine("e", "ready", info=INFO, health=Health(70, 3, 2, 1024, 300))
LABELS = {"engine": "e", "model_name": "starter"}


def test_engines_under_the_names_of_vllm():
    metrics = make(engines=(ENGINE, engine("f", "loading", loaded=0.25)))
    metrics(Generated("e", 0.05, 1.05, 100, 64, 21))
    metrics(Generated("e", 0.2, 0.2, 50, 0, 1))
    assert value(metrics, "vllm:num_requests_running", **LABELS) == 3
    assert value(metrics, "vllm:num_requests_waiting", **LABELS) == 2
    assert value(metrics, "vllm:kv_cache_usage_perc", **LABELS) == 0.25
    assert value(metrics, "vllm:prefix_cache_queries_total", **LABELS) == 150
    assert value(metrics, "vllm:prefix_cache_hits_total", **LABELS) == 64
    assert value(metrics, "vllm:prompt_tokens_total", **LABELS) == 150
    assert value(metrics, "vllm:generation_tokens_total", **LABELS) == 22
    assert value(metrics, "vllm:time_to_first_token_seconds_count", **LABELS) == 2
    assert value(metrics, "vllm:inter_token_latency_seconds_count", **LABELS) == 20
    assert value(metrics, "vllm:inter_token_latency_seconds_sum", **LABELS) == pytest.approx(1)
    assert value(
        metrics, "vllm:inter_token_latency_seconds_bucket", **LABELS, le="0.05"
    ) == pytest.approx(20)
    assert value(metrics, "vllm:e2e_request_latency_seconds_sum", **LABELS) == pytest.approx(1.25)
    told = {dict(labels).get("engine") for name, labels in samples(metrics) if "vllm" in name}
    assert told == {"e"}, "the other was never ready"


def test_engines_processes():
    metrics = make(engines=(ENGINE, engine("f", "loading", loaded=0.25)))
    for state in ("starting", "loading", "ready", "backoff", "starting", "backoff", "draining"):
        metrics(NodeState("e", state))
    assert value(metrics, "nenya_engine_restarts_total", engine="e") == 2
    assert value(metrics, "nenya_engine_restarts_total", engine="f") == 0
    assert value(metrics, "nenya_engine_state", engine="e", state="ready") == 1
    assert value(metrics, "nenya_engine_state", engine="f", state="ready") == 0
    assert value(metrics, "nenya_engine_loaded_ratio", engine="f") == 0.25
    assert value(metrics, "nenya_engine_loaded_ratio", engine="e") == 1
    assert value(metrics, "nenya_engine_kv_free_tokens", engine="e") == 3072
    assert value(metrics, "nenya_engine_prefill_remaining_tokens", engine="e") == 300
    assert value(metrics, "nenya_engine_iterations_total", engine="e") == 70


def test_series_go_when_what_they_name_goes():
    now = [stats(engines=(ENGINE,))]
    metrics = Metrics(lambda: now[0])
    for event in (
        DONE,
        msgspec.structs.replace(DONE, model="n", target="u", provider="q"),
        AttemptDone("m", "t", "p", 0.5, FaultKind.RATE_LIMITED),
        Retry("t", FaultKind.RESET),
        Hedge("t", "won"),
        Fallback("n", "m", "overloaded"),
        Queued("m", 0, "full", 0.0),
        Recovery("t", "continued"),
        RetryRefused("m", "t", FaultKind.RESET),
        TargetState("t", "ejected", "connection_reset"),
        NodeState("e", "backoff"),
        Generated("e", 0.05, 1.05, 100, 64, 21),
    ):
        metrics(event)
    metrics.render()
    now[0] = stats(target("u"), routes=(route("n"),))
    gone = {"m", "t", "p", "e"}
    left = [
        (name, labels) for name, labels in samples(metrics) if gone & set(dict(labels).values())
    ]
    assert left == []
    assert value(metrics, "nenya_requests_total", model="n", target="u", outcome="ok") == 1
    metrics(DONE)
    other = {"model": "other", "target": "other", "outcome": "ok"}
    assert value(metrics, "nenya_requests_total", **other) == 1
    now[0] = stats(engines=(ENGINE,))
    metrics.render()
    metrics(DONE)
    assert value(metrics, "nenya_requests_total", model="m", target="t", outcome="ok") == 1
    assert value(metrics, "vllm:prompt_tokens_total", **LABELS) == 0


async def test_a_loop_that_is_held_is_late():
    spread = Spread(buckets.LAG)
    lag = LoopLag(spread)
    lag.start()
    await asyncio.sleep(EVERY_S / 2)
    time.sleep(EVERY_S)  # noqa: ASYNC251 - this is what holds it
    while not sum(spread.counts):
        await asyncio.sleep(0.001)
    assert spread.total > EVERY_S / 4
    seen = sum(spread.counts)
    while sum(spread.counts) < seen + 2:
        await asyncio.sleep(0.01)
    lag.stop()
    seen = sum(spread.counts)
    await asyncio.sleep(1.5 * EVERY_S)
    assert sum(spread.counts) == seen
    lag.stop()


def test_lines_their_waits_and_whom_they_refused():
    lines = (LineStats("m", 0, 3), LineStats("m", -1, 0))
    metrics = make(lines=lines)
    for outcome in ("served", "gone", "expired", "full", "shed", "displaced"):
        metrics(Queued("m", -1, outcome, 2.0))
    metrics(Queued("who knows", 0, "full", 0.0))
    assert value(metrics, "nenya_queue_depth", model="m", priority="0") == 3
    assert value(metrics, "nenya_queue_depth", model="m", priority="-1") == 0
    assert value(metrics, "nenya_queue_wait_seconds_count", model="m", priority="-1") == 4
    assert value(metrics, "nenya_queue_wait_seconds_sum", model="m", priority="-1") == 8
    found = samples(metrics)
    refused = {
        (dict(labels)["model"], dict(labels)["reason"]): count
        for (name, labels), count in found.items()
        if name == "nenya_queue_refusals_total"
    }
    assert refused == {
        ("m", "expired"): 1, ("m", "full"): 1, ("m", "shed"): 1, ("m", "displaced"): 1,
        ("other", "full"): 1,
    }  # fmt: skip


moments = st.lists(
    st.one_of(
        st.builds(
            msgspec.structs.replace,
            st.just(DONE),
            streaming=st.booleans(),
            target=st.sampled_from(["t", "u", ""]),
            outcome=st.sampled_from(["ok", "client_gone", "invented"]),
            duration_s=st.floats(0.2, 400),
            first_token_s=st.none() | st.floats(0, 0.2),
            output_tokens=st.none() | st.integers(0, 50),
            cost_usd=st.none() | st.floats(0, 1),
            burnt_input_tokens=st.none() | st.integers(0, 5),
        ),
        st.builds(
            AttemptDone,
            st.just("m"),
            st.sampled_from("tu"),
            st.just("p"),
            st.floats(0, 400),
            st.none() | st.sampled_from(FaultKind),
        ),
        st.builds(
            Admitted,
            st.just("me"),
            st.just("m"),
            st.just("key"),
            st.sampled_from([("requests",), ("requests", "usd")]),
        ),
    ),
    max_size=300,
)


@settings(max_examples=60, deadline=None)
@given(moments)
def test_what_waits_is_counted_as_if_each_page_had_been_asked_for(events):
    waits, asked = make(), make()
    for event in events:
        waits(event)
        asked(event)
        asked.scrape("")
    assert samples(waits) == pytest.approx(samples(asked))


def test_only_so_many_requests_wait_to_be_counted():
    metrics = make()
    for _ in range(3 * WAITING + 1):
        metrics(Admitted("me", "m", "key", ("requests",)))
        metrics(AttemptDone("m", "t", "p", 0.5, None))
        metrics(DONE)
    assert [len(waits) for waits in (metrics._done, metrics._tried, metrics._let_in)] == [1] * 3
    assert value(metrics, "nenya_requests_total", model="m", target="t", outcome="ok") == (
        3 * WAITING + 1
    )
