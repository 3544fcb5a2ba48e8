"""What Prometheus sees."""

import threading
import time

import msgspec
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain

from router.app import LineStats
from router.errors import FaultKind
from router.events import (
    Admitted,
    AttemptDone,
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
from router.metrics import (
    DURATION_BUCKETS,
    FIRST_TOKEN_BUCKETS,
    MAX_CACHED,
    OUTCOMES,
    PER_TOKEN_BUCKETS,
    STATES,
    Metrics,
)
from router.policy.quota import Gauge

OPEN = "application/openmetrics-text; version=1.0.0"


class TargetStats(msgspec.Struct, frozen=True):
    target: str
    state: str
    inflight: int
    quota: tuple[Gauge, ...] = ()


class Stats(msgspec.Struct, frozen=True):
    targets: tuple[TargetStats, ...]
    lines: tuple[LineStats, ...] = ()


DONE = RequestDone(
    request_id="req_1", key_id="me", model="m", target="t", provider="p", streaming=True, outcome="ok", status=200,
    attempts=1, duration_s=2.1, first_token_s=0.1, input_tokens=100, cached_input_tokens=40, output_tokens=21,
    overhead_s=0.0004,
)  # fmt: skip


def make(*targets: TargetStats) -> Metrics:
    return Metrics(lambda: Stats(targets), models=["m", "n"], targets={"t": "p", "u": "q"})


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
    metrics = make(TargetStats("t", "probing", 3), TargetStats("u", "unavailable", 0))
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
    metrics = make(TargetStats("t", "admitting", 1))
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
    metrics = make(TargetStats("t", "admitting", 1))
    metrics(DONE)
    metrics(AttemptDone("m", "t", "p", 0.5, None))
    families = {family.name: family for family in open_metrics(metrics.render(OPEN)[1].decode())}
    assert set(families) == {
        "gen_ai_server_request_duration_seconds", "gen_ai_server_time_to_first_token_seconds",
        "gen_ai_server_time_per_output_token_seconds", "gen_ai_client_operation_duration_seconds", "nenya_requests",
        "nenya_tokens", "nenya_output_tokens_per_second", "nenya_overhead_seconds", "nenya_target_inflight_requests",
        "nenya_target_state", "nenya_target_ejections", "nenya_retries", "nenya_retries_refused", "nenya_hedges",
            "nenya_fallbacks", "nenya_build", "nenya_recoveries", "nenya_burnt_tokens",
            "nenya_cost_usd", "nenya_ratelimit_decisions", "nenya_usage_records_dropped",
            "nenya_upstream_429", "nenya_upstream_ratelimit_limit",
            "nenya_upstream_ratelimit_remaining", "nenya_upstream_ratelimit_reset_seconds",
        "nenya_queue_depth", "nenya_queue_refusals", "nenya_queue_wait_seconds",
    }  # fmt: skip

    def buckets(name: str) -> list[float]:
        samples = families[name].samples
        return [float(s.labels["le"]) for s in samples if s.name.endswith("_bucket")][:-1]

    assert buckets("gen_ai_server_request_duration_seconds") == pytest.approx(DURATION_BUCKETS)
    assert buckets("gen_ai_server_time_to_first_token_seconds") == pytest.approx(
        FIRST_TOKEN_BUCKETS
    )
    assert buckets("gen_ai_server_time_per_output_token_seconds") == pytest.approx(
        PER_TOKEN_BUCKETS
    )
    assert DURATION_BUCKETS[0] == 0.01
    assert DURATION_BUCKETS[-1] == pytest.approx(655.36)


def test_a_page_is_rendered_while_events_come():
    metrics = make(TargetStats("t", "admitting", 1))
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
    metrics = Metrics(lambda: reads.append(1) or Stats(()), models=[], targets={})
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
    metrics = make(TargetStats("t", "admitting", 1))
    metrics(Recovery("t", "continued"))
    metrics(Recovery("unknown", "failed"))
    metrics(msgspec.structs.replace(DONE, burnt_input_tokens=12))
    page = metrics.render()[1].decode()
    assert 'nenya_recoveries_total{outcome="continued",target="t"} 1.0' in page
    assert 'nenya_recoveries_total{outcome="failed",target="other"} 1.0' in page
    assert 'type="input"} 12.0' in page


def test_upstream_limits_are_gauges_of_each_target_and_resource():
    gauge = Gauge("tokens_day", 1000, 400, 51.5)
    seen = samples(
        make(TargetStats("t", "admitting", 0, (gauge,)), TargetStats("u", "admitting", 0))
    )
    labels = frozenset({("target", "t"), ("resource", "tokens_day")})
    found = {name: value for (name, where), value in seen.items() if "ratelimit" in name}
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
    assert samples(metrics)["nenya_upstream_429_total", frozenset({("target", "t")})] == 2


def test_lines_their_waits_and_whom_they_refused():
    lines = (LineStats("m", 0, 3), LineStats("m", -1, 0))
    metrics = Metrics(lambda: Stats((), lines), models=["m"], targets={})
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
