"""Sixteen faults of an upstream, each streamed and whole: the client gets a whole answer or an explicit error.

Each test says what the client gets, what becomes of the target, and (at the end of `faulty.world`) that nothing is in
flight and every request was settled and told once. Times are settings, set small; none is measured.
"""

from __future__ import annotations

import asyncio

import pytest

from router.load import FirstTokens
from tests import upstream as up
from tests.e2e.faulty import (
    QUESTION,
    RULES,
    TEXT,
    WORDS,
    by_prefix,
    prefix_of,
    speaks,
    until,
    world,
)

both = pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
SHORT = RULES.replace(
    "first_token_s: 5, answer_s: 5, idle_s: 5", "first_token_s: 0.25, answer_s: 0.25, idle_s: 0.25"
)
BEGINNING = "word0 word1"
"""What is to be continued after two words; templates drop white space at its end."""
USAGE = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}


def usage_of(got):
    return {name: got.usage[name] for name in USAGE}


async def assert_counted(w, streaming, text=TEXT):
    """``a`` failed once; a second time ejects it, and then it is left alone."""
    assert w.state("a") == "admitting"
    asked = len(w.a.requests)
    while len(w.a.requests) == asked:
        assert (await w.ask(streaming)).text == text
    await until(lambda: w.state("a") == "ejected")
    asked = len(w.a.requests)
    assert [got.target for got in await w.asks(3, streaming)] == ["b/up"] * 3
    assert len(w.a.requests) == asked


async def assert_not_blamed(w, streaming):
    """However often it does so, ``a`` stays."""
    asked = len(w.a.requests)
    while len(w.a.requests) < asked + 4:
        await w.ask(streaming)
    assert w.state("a") == "admitting"


# 1, 2: 429.


@both
async def test_429_with_retry_after_goes_elsewhere_and_the_target_is_left_alone(streaming):
    async with world(up.rate_limited("30"), speaks()) as w:
        got = await w.ask(streaming)
        assert (got.status, got.text, got.attempts) == (200, TEXT, 2)
        assert {got.target for got in await w.asks(5, streaming)} == {"b/up"}
        assert len(w.a.requests) == 1
        assert w.state("a") == "admitting"
        assert [done.outcome for done in w.done] == ["ok"] * 6


@both
async def test_429_with_retry_after_is_waited_for_where_the_deadline_allows(streaming):
    limited = up.status(429, headers={"retry-after-ms": "40"})
    async with world(speaks()) as w:
        w.a.script(limited)
        got = await w.ask(streaming)
        assert (got.status, got.text, got.attempts) == (200, TEXT, 2)
        assert w.state("a") == "admitting"


@both
async def test_429_beyond_the_deadline_is_the_clients_with_that_retry_after(streaming):
    async with world(up.rate_limited("90"), up.rate_limited("70")) as w:
        got = await w.ask(streaming)
        assert (got.status, got.error["code"]) == (429, "rate_limit_exceeded")
        assert 60 < int(got.headers["retry-after"]) <= 90
        again = await w.ask(streaming)
        assert 60 < int(again.headers["retry-after"]) <= 90
        assert [len(one.requests) for one in w.upstreams] == [1, 1]
        assert [done.outcome for done in w.done] == ["rate_limit_exceeded"] * 2
        assert [done.output_tokens for done in w.done] == [None, None]


@both
async def test_429_without_retry_after_goes_elsewhere_and_ejects_nobody(streaming):
    async with world(up.rate_limited(None), speaks()) as w:
        got = await w.ask(streaming)
        assert (got.status, got.text, got.attempts) == (200, TEXT, 2)
        await w.asks(5, streaming)
        assert w.state("a") == "admitting"


@both
async def test_429_without_retry_after_from_the_only_target_is_tried_again_after_a_backoff(
    streaming,
):
    async with world(speaks()) as w:
        w.a.script(up.rate_limited(None))
        got = await w.ask(streaming)
        assert (got.status, got.text, got.attempts) == (200, TEXT, 2)
        assert w.state("a") == "admitting"


@both
async def test_429_without_end_is_the_clients_with_a_retry_after(streaming):
    async with world(up.rate_limited(None)) as w:
        got = await w.ask(streaming)
        assert (got.status, got.error["code"]) == (429, "rate_limit_exceeded")
        assert int(got.headers["retry-after"]) >= 1
        assert w.state("a") == "admitting"


# 3, 4: 5xx.


@both
async def test_500_once_is_retried(streaming):
    async with world(speaks()) as w:
        w.a.script(up.status(500))
        got = await w.ask(streaming)
        assert (got.status, got.text, got.attempts) == (200, TEXT, 2)
        assert w.state("a") == "admitting"
        w.a.script(up.status(500))
        await w.asks(2, streaming)
        assert w.state("a") == "admitting", "not two in a row"
        w.a.script(up.status(500), up.status(500))
        await w.ask(streaming)
        assert w.state("a") != "ejected", "the third attempt was its probe, and good"


@both
async def test_503_for_ever_is_ejected_and_probed_by_one_at_a_time(streaming):
    rules = RULES.replace("eject_s: 60", "eject_s: 0.05")
    gate = asyncio.Event()
    async with world(up.status(503), speaks(), rules=rules) as w:
        assert {got.text for got in await w.asks(4, streaming)} == {TEXT}
        asked = len(w.a.requests)
        assert asked >= 2
        w.a.default = up.waits(gate, up.status(503))
        await asyncio.sleep(0.06 + 0.05 * asked)
        probe = asyncio.create_task(w.ask(streaming))
        while len(w.a.requests) == asked:
            if probe.done():
                probe = asyncio.create_task(w.ask(streaming))
            await asyncio.sleep(0.002)
        assert w.state("a") == "probing"
        others = await asyncio.gather(*(w.ask(streaming) for _ in range(10)))
        assert {got.target for got in others} == {"b/up"}
        assert len(w.a.requests) == asked + 1
        gate.set()
        assert (await probe).text == TEXT
        assert w.state("a") == "ejected"


@both
async def test_503_of_every_target_is_said(streaming):
    async with world(up.status(503), up.status(503)) as w:
        for _ in range(4):
            got = await w.ask(streaming)
            assert (got.status, got.error["code"]) == (502, "server_error")


FALLBACK = "  n: {{targets: [{{provider: {0}, model: large}}]}}\n"


@both
async def test_503_of_every_target_goes_to_the_models_fallback(streaming):
    how = {"served": 2, "model": "fallback: [n]", "more": FALLBACK.format("c")}
    async with world(up.status(503), up.status(503), speaks(), **how) as w:
        got = await w.ask(streaming)
        assert (got.status, got.text, got.target) == (200, TEXT, "c/large")
        await w.asks(3, streaming)
        states = sorted(w.state(name) for name in "ab")
        assert states == ["admitting", "ejected"], "of two, max_ejected lets one be out"
        assert {seen.json["model"] for seen in w.c.requests} == {"large"}
        assert [(done.outcome, done.model) for done in w.done] == [("ok", "m")] * 4


# 5, 6, 7: nothing before the first byte.


@both
@pytest.mark.parametrize("fault", [up.reset(), up.hang_up()], ids=["RST", "FIN"])
async def test_a_reset_before_the_head_goes_elsewhere_and_is_counted(fault, streaming):
    async with world(fault, speaks()) as w:
        got = await w.ask(streaming)
        assert (got.status, got.text, got.attempts) == (200, TEXT, 2)
        await assert_counted(w, streaming)


@both
async def test_who_never_answers_is_left_after_the_first_token_limit_and_counted(streaming):
    async with world(up.silent(), speaks(), rules=SHORT) as w:
        got = await w.ask(streaming)
        assert (got.status, got.text, got.attempts) == (200, TEXT, 2)
        await w.a.until_gone()
        await assert_counted(w, streaming)


@both
async def test_a_slow_first_token_is_not_waited_for_though_heartbeats_come(streaming):
    async def slow(call):
        kind = b"text/event-stream" if streaming else b"application/json"
        head = (
            b"HTTP/1.1 200 OK\r\ncontent-type: " + kind + b"\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        beat = up.chunked(b": working\n\n" if streaming else b" \n")
        await call.write(head)
        while not call.gone.is_set():
            await call.write(beat)
            await asyncio.sleep(0.02)

    async with world(slow, speaks(), rules=SHORT) as w:
        got = await w.ask(streaming)
        assert (got.status, got.text, got.attempts) == (200, TEXT, 2)
        await w.a.until_gone()
        await assert_counted(w, streaming)


async def test_a_slow_first_token_is_hedged_where_the_config_says_so():
    """Long before any limit, once it is known how long first tokens take."""
    rules = RULES.replace("backoff_s: 0.01", "backoff_s: 0.01, hedge_share: 1")
    async with world(speaks(), speaks(), rules=rules) as w:
        await w.asks(2 * FirstTokens.FEW, True)
        gate = asyncio.Event()
        w.a.default = up.waits(gate, speaks())
        got = await w.ask(True)
        while got.attempts == 1:
            got = await w.ask(True)
        assert (got.text, got.target) == (TEXT, "b/up")
        await w.a.until_gone()
        assert w.state("a") == "admitting", "it was cancelled, which says nothing"


# 8, 9, 10, 11: broken off in the middle.


async def garbage(call):
    """A response whose chunked framing breaks."""
    parts = up.events(texts=WORDS[:2], finish=None, done=False)
    await up.stream_of(parts, then=up.raw(b"zz\r\n"))(call)


async def truncated_event(call):
    """An event that ends too soon, though with a brace."""
    head, _, _ = up.event(up.chunk({"content": WORDS[2]})).partition(b',"logprobs"')
    parts = [*up.events(texts=WORDS[:2], finish=None, done=False), head + b"\n\n", *up.events(1)]
    await up.stream_of(parts)(call)


def streams_only(fault):
    async def answer(call):
        assert call.seen.streams
        await fault(call)

    return answer


BREAKS = {
    "cut by FIN": (up.cut(2), "stream_cut"),
    "cut by RST": (up.cut(2, rst=True), "stream_cut"),
    "stall": (up.stall(2), "stream_stalled"),
    "stall with heartbeats": (up.stall(2, heartbeat_s=0.02), "stream_stalled"),
    "malformed chunk": (up.malformed(2), "malformed_answer"),
    "malformed HTTP": (streams_only(garbage), "malformed_answer"),
    "truncated event": (streams_only(truncated_event), "malformed_answer"),
    "error event": (streams_only(up.error_event(2)), "server_error"),
    "no finish, no [DONE]": (streams_only(up.no_done(2, finish=None)), "stream_cut"),
    "no finish but [DONE]": (streams_only(up.stream(2, finish=None)), "stream_cut"),
}
WHOLE_BREAKS = ["cut by FIN", "cut by RST", "stall", "malformed chunk"]


def rules_for(name):
    return SHORT if "stall" in name else RULES


@pytest.mark.parametrize("name", BREAKS)
async def test_a_stream_that_breaks_is_continued_elsewhere_and_counted(name):
    fault, _ = BREAKS[name]
    async with world(fault, speaks(), rules=rules_for(name), provider="continues: true") as w:
        got = await w.ask(True)
        assert (got.is_whole(), got.text, got.finishes) == (True, TEXT, ["stop"])
        assert [prefix_of(seen) for seen in w.b.requests] == [BEGINNING]
        await assert_counted(w, True)
        assert {done.outcome for done in w.done} == {"ok"}


@pytest.mark.parametrize("name", BREAKS)
async def test_a_stream_that_breaks_and_cannot_be_continued_ends_in_an_error_event(name):
    """Nobody else is there, and who broke off breaks off again."""
    fault, code = BREAKS[name]
    async with world(by_prefix(fault, up.status(500)), rules=rules_for(name)) as w:
        got = await w.ask(True)
        assert not got.is_whole()
        assert (got.error["code"], got.text) == (code, "".join(WORDS[:2]))
        await w.ask(True)
        assert w.state("a") == "ejected"


@pytest.mark.parametrize("name", WHOLE_BREAKS)
async def test_a_whole_answer_that_breaks_is_asked_for_elsewhere_and_counted(name):
    fault, _ = BREAKS[name]
    async with world(fault, speaks(), rules=rules_for(name)) as w:
        got = await w.ask()
        assert (got.status, got.text, got.attempts) == (200, TEXT, 2)
        assert usage_of(got) == USAGE
        await assert_counted(w, False)


@pytest.mark.parametrize("name", WHOLE_BREAKS)
async def test_a_whole_answer_that_always_breaks_is_an_error(name):
    fault, code = BREAKS[name]
    async with world(fault, rules=rules_for(name)) as w:
        got = await w.ask()
        assert (got.status in {502, 504}, got.error["code"]) == (True, code)


@pytest.mark.parametrize(
    "then", [None, up.hang_up(), up.reset(), up.silent()], ids=["end", "FIN", "RST", "stall"]
)
async def test_a_stream_without_done_is_whole_where_its_finish_was_seen(then):
    async def late(call):
        await asyncio.sleep(0.02)  # a RST overtakes what is still on its way
        await then(call)

    fault = up.stream_of(up.events(texts=WORDS, done=False), then=late if then else None)
    async with world(fault, rules=SHORT) as w:
        for _ in range(4):
            got = await w.ask(True)
            assert (got.is_whole(), got.text, got.attempts) == (True, TEXT, 1)
        assert w.state("a") == "admitting"
        assert {done.outcome for done in w.done} == {"ok"}


async def test_a_whole_answer_without_an_end_mark_is_whole_if_its_json_is():
    """The counterpart of a missing [DONE]: a body that ends with its connection."""
    body = up.completion(TEXT)
    async with world(up.json_answer(body, framing="close"), speaks()) as w:
        got = await w.ask()
        assert (got.text, got.attempts) == (TEXT, 1)
        w.a.default = up.json_answer(body[:-9], framing="close")
        while len(w.a.requests) < 2:
            got = await w.ask()
        assert (got.text, got.attempts) == (TEXT, 2)


# 12, 13: the request's own.


@both
async def test_a_context_that_is_too_long_is_passed_on_unchanged_and_blames_nobody(streaming):
    async with world(up.context_too_long(), up.context_too_long()) as w:
        got = await w.ask(streaming)
        assert (got.status, got.error["code"]) == (400, "context_length_exceeded")
        sent = up.error_body(
            "This model's maximum context length is 8192 tokens.",
            kind="invalid_request_error",
            param="messages",
            code="context_length_exceeded",
        )
        assert got.body == sent
        assert [len(one.requests) for one in w.upstreams] == [1, 0], (
            "another of the model is no larger"
        )
        await assert_not_blamed(w, streaming)


@both
async def test_a_context_that_is_too_long_goes_to_the_larger_model(streaming):
    how = {"served": 1, "model": "context_fallback: [n]", "more": FALLBACK.format("b")}
    async with world(up.context_too_long(), speaks(), **how) as w:
        for _ in range(4):
            got = await w.ask(streaming)
            assert (got.status, got.text) == (200, TEXT)
        assert {seen.json["model"] for seen in w.b.requests} == {"large"}
        assert [len(one.requests) for one in w.upstreams] == [4, 4]
        assert w.state("a") == "admitting"


@both
async def test_a_content_filter_is_passed_on_truthfully_and_blames_nobody(streaming):
    async with world(up.content_filtered(2), speaks()) as w:
        got = await w.ask(streaming)
        assert (got.is_whole(), got.finishes, got.attempts) == (True, ["content_filter"], 1)
        await assert_not_blamed(w, streaming)


@both
async def test_a_refusal_by_a_content_filter_is_passed_on_and_blames_nobody(streaming):
    body = up.error_body("It was filtered.", kind="invalid_request_error", code="content_filter")
    async with world(up.status(400, body), speaks()) as w:
        got = await w.ask(streaming)
        assert (got.status, got.body) == (400, body)
        await assert_not_blamed(w, streaming)


@both
async def test_a_refusal_by_a_content_filter_goes_elsewhere_where_the_config_says_so(streaming):
    body = up.error_body("It was filtered.", kind="invalid_request_error", code="content_filter")
    how = {"served": 1, "model": "content_filter_fallback: [n]", "more": FALLBACK.format("b")}
    async with world(up.status(400, body), speaks(), **how) as w:
        got = await w.ask(streaming)
        assert (got.status, got.text) == (200, TEXT)
        assert w.state("a") == "admitting"


# 14: who doesn't continue.


async def test_who_refuses_to_continue_is_passed_over_and_remembered():
    b = by_prefix(speaks(), up.refuses_prefix())
    async with world(up.cut(2), b, speaks()) as w:
        got = await w.ask(True)
        assert (got.is_whole(), got.text) == (True, TEXT)
        assert [prefix_of(seen) for seen in w.b.requests] == [BEGINNING]
        assert w.state("b") == "admitting"
        asked = len(w.a.requests)
        while len(w.a.requests) == asked:
            assert (await w.ask(True)).text == TEXT
        assert [prefix_of(seen) for seen in w.b.requests].count(BEGINNING) == 1, "it was learned"


async def test_where_nobody_continues_the_error_is_explicit_and_no_text_comes_twice():
    b = by_prefix(speaks(), up.refuses_prefix())
    async with world(up.cut(2), b, provider="continues: true") as w:
        got = await w.ask(True)
        assert (got.is_whole(), got.text, got.error["code"]) == (
            False,
            "word0 word1 ",
            "stream_cut",
        )
        assert len(w.b.requests) == 1


@both
async def test_an_assistants_last_message_is_the_clients_and_its_refusal_too(streaming):
    """The same refusal without a continuation is a client's mistake."""
    async with world(up.refuses_prefix()) as w:
        got = await w.ask(
            streaming, messages=[QUESTION, {"role": "assistant", "content": "word0 "}]
        )
        assert got.status == 400
        assert "assistant" in got.error["message"]
        await assert_not_blamed(w, streaming)


# 15: flapping.


@both
async def test_flapping_costs_no_client_its_answer_and_then_only_probes_reach_it(streaming):
    rules = RULES.replace("eject_s: 60", "eject_s: 0.05")
    flaps = up.flapping(*[up.status(500)] * 2, *[speaks()] * 2, *[up.reset()] * 2)
    async with world(flaps, speaks(), speaks(), rules=rules) as w:
        for _ in range(12):
            answers = await asyncio.gather(*(w.ask(streaming) for _ in range(10)))
            assert {(got.status, got.text) for got in answers} == {(200, TEXT)}
            await asyncio.sleep(0.01)
        states = [event for event in w.served.events if type(event).__name__ == "TargetState"]
        assert {event.target for event in states} == {"a/up"}
        assert {"ejected", "probing"} >= {states[0].state}
        assert {done.outcome for done in w.done} == {"ok"}


# 16: tokens, through all of it.


@both
async def test_usage_is_the_answers_and_tokens_are_counted_once(streaming):
    options = {"stream_options": {"include_usage": True}} if streaming else {}
    async with world(up.status(500), speaks()) as w:
        got = await w.ask(streaming, **options)
        assert (usage_of(got), got.attempts) == (USAGE, 2)
        (done,) = w.done
        assert (done.input_tokens, done.output_tokens, done.tokens_estimated) == (10, 3, None)
        assert done.cost_usd == pytest.approx(13e-6)
        await w.ask(streaming)
        assert [(done.input_tokens, done.output_tokens) for done in w.done] == [(10, 3)] * 2


async def test_a_stream_that_broke_off_is_charged_for_what_was_relayed():
    async with world(by_prefix(up.cut(3), up.status(500)), rules=RULES) as w:
        got = await w.ask(True)
        assert not got.is_whole()
        (done,) = w.done
        assert (done.outcome, done.tokens_estimated) == ("stream_cut", True)
        assert 1 <= done.output_tokens <= 4
        assert done.cost_usd > 0


async def test_what_was_burnt_for_a_continued_answer_is_in_the_record():
    options = {"stream_options": {"include_usage": True}}
    async with world(up.cut(2), speaks(), provider="continues: true") as w:
        got = await w.ask(True, **options)
        assert got.is_whole()
        (done,) = w.done
        assert done.outcome == "ok"
        assert done.output_tokens == got.usage["completion_tokens"] == 2 + 3
        assert done.input_tokens == got.usage["prompt_tokens"] <= 10, "of its own prompt"
        assert done.burnt_input_tokens == 10, "the prompt was read twice"
