"""What the page remembers: rates, histories, errors; bounded whatever comes."""

import msgspec
import pytest

from router.errors import FaultKind
from router.events import (
    AttemptDone,
    LimitDecision,
    NodeState,
    Queued,
    RequestDone,
    TargetState,
    UsageLost,
)
from router.recent import BUCKET_S, BUCKETS, MOST_CHARS, MOST_ERRORS, SAME_S, Recent
from tests.clocks import ManualClock

DONE = RequestDone(
    request_id="req_1", key_id="me", model="m", target="t", provider="p", streaming=True, outcome="ok", status=200,
    attempts=1, duration_s=2.5, first_token_s=0.5, input_tokens=100, cached_input_tokens=None, output_tokens=41,
    overhead_s=0.0001, cost_usd=0.25,
)  # fmt: skip


def done(**fields) -> RequestDone:
    return msgspec.structs.replace(DONE, **fields)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def recent(clock) -> Recent:
    return Recent(["m", "n"], ["t", "u"], clock)


def looked(recent: Recent) -> Recent:
    recent.share_out()
    return recent


def test_a_request_counts_once_for_its_model_its_target_and_all(recent, clock):
    for _ in range(3):
        recent(DONE)
    recent(done(model="n", target="u", output_tokens=1, streaming=False))
    clock.advance(10)
    looked(recent)
    looked(recent)
    assert (recent.totals.requests, recent.totals.errors) == (4, 0)
    assert recent.totals.input_tokens == 400
    assert recent.totals.output_tokens == 124
    assert recent.totals.cost_usd == 1.0
    now = clock.now()
    rates = recent.models["m"].rates(now, recent.since)
    assert rates == recent.targets["t"].rates(now, recent.since)
    assert rates.requests_per_s == 0.3  # three in the ten seconds since the start
    assert rates.output_tokens_per_s == pytest.approx(12.3)
    assert rates.first_token_s == 0.5
    assert rates.answer_s == 2.5
    assert rates.stream_tokens_per_s == 20.0  # 40 behind the first, in 2 s
    other = recent.targets["u"].rates(now, recent.since)
    assert (other.requests_per_s, other.first_token_s, other.stream_tokens_per_s) == (
        0.1,
        None,
        None,
    )
    assert recent.all.rates(now, recent.since).requests_per_s == 0.4


def test_rates_forget_after_a_minute_and_histories_after_five(recent, clock):
    clock.advance(600)
    recent(DONE)
    clock.advance(54)
    looked(recent)
    assert recent.all.rates(clock.now(), recent.since).requests_per_s > 0
    clock.advance(7)
    assert recent.all.rates(clock.now(), recent.since).requests_per_s == 0
    assert len(recent.all.history(clock.now())) == 1
    clock.advance(BUCKET_S * BUCKETS)
    assert recent.all.history(clock.now()) == ()
    assert recent.totals.requests == 1


def test_a_history_is_bounded_and_has_gaps(recent, clock):
    for _ in range(3 * BUCKETS):
        recent(DONE)
        clock.advance(BUCKET_S)
    recent(done(first_token_s=1.5))
    recent(DONE)
    points = looked(recent).all.history(clock.now())
    assert len(points) == BUCKETS
    tick = int(clock.now() / BUCKET_S)
    assert [point.tick for point in points] == list(range(tick - BUCKETS + 1, tick + 1))
    assert (points[-1].requests, points[-1].first_token_s, points[-1].worst_first_token_s) == (
        2,
        1.0,
        1.5,
    )
    clock.advance(BUCKET_S * 10)
    recent(DONE)
    points = looked(recent).all.history(clock.now())
    assert points[-1].tick - points[-2].tick == 10


def test_errors_of_clients_and_faults_of_targets_are_told_apart(recent, clock):
    """A retry that ended well is the target's failure and nobody's error."""
    recent(AttemptDone("m", "t", "p", 1.0, FaultKind.RESET, request_id="req_1"))
    recent(done(target="u"))
    recent(AttemptDone("m", "t", "p", 1.0, FaultKind.CLIENT_ERROR, request_id="req_2"))
    recent(done(request_id="req_2", outcome="invalid_value", status=400))
    recent(done(outcome="client_gone", status=499))
    clock.advance(10)
    looked(recent)
    now = clock.now()
    assert recent.targets["t"].rates(now, recent.since).errors_per_s == 0.1
    assert recent.targets["u"].rates(now, recent.since).errors_per_s == 0
    assert recent.models["m"].rates(now, recent.since).errors_per_s == 0.1
    assert (recent.totals.requests, recent.totals.errors, recent.totals.client_gone) == (3, 1, 1)
    assert [(e.what, e.kind, e.request_id, e.status) for e in recent.errors] == [
        ("attempt", "connection_reset", "req_1", None),
        ("request", "invalid_value", "req_2", 400),
    ]


def test_errors_have_who_when_and_what(recent, clock):
    recent(done(outcome="model_unavailable", status=503, target=""))
    clock.advance(1)
    recent(TargetState("t", "ejected", "server_error"))
    recent(TargetState("t", "admitting", "good"))
    clock.advance(1)
    recent(NodeState("gpu0", "backoff", "its process was killed by SIGKILL"))
    clock.advance(1)
    recent(UsageLost("me"))
    recent(Queued("m", 0, "served", 1.0))
    assert [(e.what, e.kind, e.target, e.key_id, e.detail, e.at) for e in recent.errors] == [
        ("usage", "usage_lost", "", "me", "", clock.wall()),
        (
            "engine",
            "backoff",
            "gpu0",
            "",
            "its process was killed by SIGKILL",
            clock.wall() - 1,
        ),
        ("target", "ejected", "t", "", "server_error", clock.wall() - 2),
        ("request", "model_unavailable", "", "me", "", clock.wall() - 3),
    ]


def test_an_outage_is_one_line_and_washes_nothing_away(recent, clock):
    recent(done(outcome="internal_error", status=500, request_id="rare"))
    for number in range(5000):
        clock.advance(SAME_S / 5000)
        recent(done(outcome="connect_failed", status=502, request_id=f"req_{number}"))
    latest = recent.errors[0]
    assert [e.kind for e in recent.errors].count("internal_error") == 1
    assert len(recent.errors) <= 3
    assert latest.request_id == "req_4999"
    assert latest.at == clock.wall()
    assert sum(e.count for e in recent.errors) == 5001
    clock.advance(SAME_S)
    recent(done(outcome="connect_failed", status=502))
    assert recent.errors[0].count == 1


def test_errors_are_bounded(recent, clock):
    for number in range(3 * MOST_ERRORS):
        recent(done(outcome=f"kind{number}", status=500))
        clock.advance(0.01)
    assert len(recent.errors) == len(recent._latest) == MOST_ERRORS
    assert recent.errors[0].kind == f"kind{3 * MOST_ERRORS - 1}"
    for _ in range(3 * MOST_ERRORS):
        recent(done(outcome="same", status=500))
        clock.advance(2 * SAME_S)
    assert len(recent.errors) == MOST_ERRORS
    assert len(recent._latest) == 1


def test_an_upstreams_long_words_are_cut(recent):
    recent(done(outcome="x" * 100_000, status=400))
    recent(NodeState("gpu0", "failed", "y" * 100_000))
    assert {len(e.kind) + len(e.detail) for e in recent.errors} == {MOST_CHARS, 6 + MOST_CHARS}


def test_names_that_no_config_has_take_no_memory(recent, clock):
    for number in range(1000):
        recent(done(model=f"m{number}", target=f"t{number}"))
    clock.advance(BUCKET_S)
    recent(DONE)
    assert len(recent._open) == 1
    assert set(recent.models) == {"m", "n"}
    looked(recent)
    assert recent.totals.requests == 1001


def test_limits_and_starts_are_counted(recent):
    for outcome in ("refused", "too_large"):
        recent(LimitDecision("me", "m", "key", "tokens", outcome))
    for state in ("starting", "loading", "ready", "backoff", "starting"):
        recent(NodeState("gpu0", state))
    assert recent.totals.limited == 2
    assert recent.starts == {"gpu0": 2}
