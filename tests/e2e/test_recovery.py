"""Streams that break after their first byte, over real sockets: the client gets one whole answer, or an error."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import aiohttp
import pytest

from router.events import AttemptDone, Recovery
from tests.e2e.serving import SECRET, needs_starter, site, upstream_config
from tests.upstream import (
    DONE,
    Upstream,
    at_random,
    chunk,
    cut,
    event,
    hang_up,
    malformed,
    no_done,
    refuses_prefix,
    stall,
    status,
    stream_of,
    waits,
)

HEADERS = {"Authorization": f"Bearer {SECRET}"}
BODY = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi, in JSON"}]}
PIECES = [f"word{i} " for i in range(6)]
WHOLE = "".join(PIECES)
BREAKS = {
    "cut": cut(2),
    "reset": cut(2, rst=True),
    "stall": stall(2, heartbeat_s=0.02),
    "malformed": malformed(2),
    "no [DONE], no finish": no_done(2, finish=None),
}


def writes(
    text=WHOLE, *, back=0, ident="chatcmpl-other", pieces=None, then=None, fault=None, **extra
):
    """Goes on from the assistant's text, from ``back`` characters before its end (None: from the very beginning)."""

    async def answer(call):
        last = call.seen.json["messages"][-1]
        said = len(last["content"]) if last["role"] == "assistant" else 0
        rest = text[0 if back is None else max(0, said - back) :]
        base = {
            "id": ident,
            "created": 5,
            "model": "other",
            "system_fingerprint": "fp_other",
            **extra,
        }
        parts = [event({**chunk({"role": "assistant", "content": ""}), **base})]
        for at in range(0, len(rest), 5):
            parts.append(event({**chunk({"content": rest[at : at + 5]}), **base}))
        if then is None:
            parts.append(event({**chunk({}, finish="stop"), **base}))
            wants = (call.seen.json.get("stream_options") or {}).get("include_usage")
            if wants:
                wrote = len(parts) - 2
                usage = {
                    "prompt_tokens": 10 + said // 5,
                    "completion_tokens": wrote,
                    "total_tokens": 0,
                }
                parts.append(event({**chunk(None, usage=usage), **base}))
            parts.append(DONE)
        else:
            parts = parts[: then + 1]
        await stream_of(parts, pieces=pieces, then=fault)(call)

    return answer


@pytest.fixture
async def client():
    async with aiohttp.ClientSession(headers=HEADERS) as session:
        yield session


async def ask(client, served, **fields):
    """The chunks of a stream, and the error's code at its end, if there is one."""
    text = b""
    path = "completions" if "prompt" in fields else "chat/completions"
    body = {**BODY, **fields}
    if "prompt" in fields:
        del body["messages"]
    async with client.post(f"{served.base_url}/{path}", json=body) as answer:
        try:
            while piece := await answer.content.readany():
                text += piece
        except aiohttp.ClientPayloadError:
            pass
    events = [
        one.removeprefix("data: ") for one in text.decode().split("\n\n") if one.startswith("d")
    ]
    if events[-1] == "[DONE]":
        return [json.loads(one) for one in events[:-1]], None
    return [json.loads(one) for one in events[:-1]], json.loads(events[-1])["error"]["code"]


def text_of(chunks):
    return "".join(
        choice["delta"].get("content") or "" for one in chunks for choice in one["choices"]
    )


def outcomes(served):
    return [(one.target, one.outcome) for one in served.events if isinstance(one, Recovery)]


def assert_one_answer(chunks):
    assert (
        len(
            {
                (one["id"], one["created"], one["model"], one.get("system_fingerprint"))
                for one in chunks
            }
        )
        == 1
    )
    choices = [choice for one in chunks for choice in one["choices"]]
    assert [choice["delta"].get("role") for choice in choices].count("assistant") == 1
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    assert choices[-1]["finish_reason"] == "stop"


LIMITS = "timeouts: {idle_s: 0.2}\n"


@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("back", [0, 6, 12, None], ids=["exact", "word", "words", "anew"])
async def test_a_broken_stream_is_ended_by_another_target(client, how, back):
    async with Upstream(BREAKS[how]) as a, Upstream(writes(back=back)) as b:
        async with site(upstream_config(a.url, b.url, extra=LIMITS)) as served:
            chunks, error = await ask(client, served, stream_options={"include_usage": True})
            inflight = served.router.inflight
            async with client.get(f"{served.admin_url}/metrics") as page:
                metrics = await page.text()
    assert error is None
    assert text_of(chunks) == WHOLE
    assert_one_answer(chunks)
    assert [one["usage"] for one in chunks if one.get("usage")] == [chunks[-1]["usage"]]
    told = chunks[-1]["usage"]
    assert told["total_tokens"] == told["prompt_tokens"] + told["completion_tokens"]
    (sent,) = b.requests
    assert sent.json["messages"][-1] == {"role": "assistant", "content": "word0 word1"}
    assert sent.json["continue_final_message"] is True
    assert sent.json["add_generation_prompt"] is False
    assert outcomes(served) == [("b/up", "continued")]
    (done,) = served.done
    assert (done.outcome, done.attempts, done.target) == ("ok", 2, "b/up")
    assert (done.input_tokens, done.output_tokens) == (
        told["prompt_tokens"],
        told["completion_tokens"],
    )
    assert done.burnt_input_tokens == 12
    assert inflight == 0
    assert 'nenya_recoveries_total{outcome="continued",target="b/up"} 1.0' in metrics
    faults = [one.fault for one in served.events if isinstance(one, AttemptDone)]
    assert faults[0] is not None
    assert faults[1] is None


async def test_usage_is_that_of_one_answer(client):
    async with Upstream(cut(2)) as a, Upstream(writes()) as b:
        async with site(upstream_config(a.url, b.url)) as served:
            chunks, _ = await ask(client, served, stream_options={"include_usage": True})
            plain, _ = await ask(client, served)
    rest = -(-len(WHOLE.removeprefix("word0 word1")) // 5)
    assert chunks[-1]["usage"]["completion_tokens"] == 2 + rest
    assert chunks[-1]["usage"]["prompt_tokens"] == 10 + 2 - 2
    assert not any("usage" in one for one in plain)


@pytest.mark.parametrize("seed", range(3))
async def test_however_the_network_cuts_it(client, seed):
    whole = "Grüße 😀, “dear” reader.\n\nIt isn't over, 終わり 😀😀 at all.\n"
    start = [
        event(chunk({"role": "assistant", "content": ""})),
        event(chunk({"content": whole[:9]})),
    ]
    broken = stream_of(start, pieces=at_random(seed, 7), then=hang_up())
    async with (
        Upstream(broken) as a,
        Upstream(writes(whole, back=None, pieces=at_random(seed, 9))) as b,
    ):
        async with site(upstream_config(a.url, b.url)) as served:
            chunks, error = await ask(client, served)
    assert (text_of(chunks), error) == (whole, None)


@pytest.mark.parametrize(
    ("second", "outcome"),
    [
        (refuses_prefix(), "rejected"),
        (writes("Something else entirely, from its start.", back=None), "diverged"),
        (writes("word0 word1 but then another way", back=None), "continued"),
    ],
)
async def test_who_does_not_go_on_is_passed_over_and_not_asked_again(client, second, outcome):
    async with (
        Upstream(cut(2), cut(2)) as a,
        Upstream(second, second) as b,
        Upstream(default=writes()) as c,
    ):
        async with site(upstream_config(a.url, b.url, c.url)) as served:
            chunks, error = await ask(client, served)
            states = {one.target: one.state for one in served.router.stats().targets}
            if outcome == "continued":
                assert text_of(chunks) == "word0 word1 but then another way"
                return
            assert (text_of(chunks), error) == (WHOLE, None)
            assert outcomes(served) == [("b/up", outcome), ("c/up", "continued")]
            assert states["b/up"] == "admitting"
            for target in served.router.pool.targets.values():
                target.breaker._bad_in_a_row = 0
            chunks, error = await ask(client, served)
            while len(a.requests) < 2:
                chunks, error = await ask(client, served)
            assert (text_of(chunks), error) == (WHOLE, None)
    assert all(seen.json["messages"][-1]["role"] == "user" for seen in b.requests[1:])


async def test_where_nobody_goes_on_the_first_error_is_told(client):
    async with Upstream(cut(2)) as a, Upstream(refuses_prefix()) as b:
        async with site(upstream_config(a.url, b.url)) as served:
            chunks, error = await ask(client, served)
    assert error == "stream_cut"
    assert text_of(chunks) == "word0 word1 "
    (done,) = served.done
    assert (done.outcome, done.attempts, done.target) == ("stream_cut", 2, "a/up")
    assert len(a.requests) == 1


async def test_the_only_target_is_asked_once_more(client):
    async with Upstream(cut(2), writes()) as a, site(upstream_config(a.url)) as served:
        chunks, error = await ask(client, served)
    assert (text_of(chunks), error) == (WHOLE, None)


async def test_a_rest_that_breaks_is_gone_on_with(client):
    second = writes(then=3, fault=hang_up())
    async with Upstream(cut(2)) as a, Upstream(second) as b, Upstream(writes()) as c:
        async with site(upstream_config(a.url, b.url, c.url)) as served:
            chunks, error = await ask(client, served)
    assert (text_of(chunks), error) == (WHOLE, None)
    assert_one_answer(chunks)
    assert c.requests[0].json["messages"][-1]["content"] == WHOLE[:26].rstrip()
    assert served.done[0].attempts == 3


async def test_continuations_count_as_attempts(client):
    async with Upstream(default=cut(2)) as a, Upstream(default=status(500)) as b:
        config = upstream_config(a.url, b.url, extra="retry: {attempts: 2}\n")
        async with site(config) as served:
            chunks, error = await ask(client, served)
    assert error == "stream_cut"
    assert len(a.requests) + len(b.requests) == 2


async def test_a_role_alone_is_begun_anew(client):
    async with Upstream(cut(0)) as a, Upstream(writes()) as b:
        async with site(upstream_config(a.url, b.url)) as served:
            chunks, error = await ask(client, served, response_format={"type": "json_object"})
    assert (text_of(chunks), error) == (WHOLE, None)
    assert_one_answer(chunks)
    assert outcomes(served) == [("b/up", "restarted")]
    assert b.requests[0].json["messages"] == BODY["messages"]


CALL = {
    "tool_calls": [
        {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    ]
}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"n": 2},
        {"logprobs": True},
        {"delta": CALL},
        {"delta": {"reasoning_content": "Hm"}},
        {"delta": {"refusal": "No"}},
    ],
)
async def test_what_nobody_can_go_on_with_is_an_error(client, fields):
    fields = dict(fields)
    delta = fields.pop("delta", {"content": "word0 "})
    start = [event(chunk({"role": "assistant", "content": ""})), event(chunk(delta))]
    broken = stream_of(start, then=hang_up())
    async with Upstream(broken) as a, Upstream(writes()) as b:
        async with site(upstream_config(a.url, b.url)) as served:
            _, error = await ask(client, served, **fields)
    assert error == "stream_cut"
    assert not b.requests


@pytest.mark.parametrize("knob", ["recovery: {enabled: false}\n", "recovery: {keep_bytes: 300}\n"])
async def test_it_can_be_switched_off_and_bounded(client, knob):
    async with Upstream(cut(2)) as a, Upstream(writes()) as b:
        async with site(upstream_config(a.url, b.url, extra=knob)) as served:
            _, error = await ask(client, served)
    assert error == "stream_cut"
    assert not b.requests


async def test_limits_are_lower_by_what_was_written(client):
    async with Upstream(cut(2), cut(2)) as a, Upstream(writes(), writes()) as b:
        async with site(upstream_config(a.url, b.url)) as served:
            await ask(client, served, max_completion_tokens=9)
            chunks, error = await ask(client, served, max_tokens=2)
            while len(a.requests) < 2:
                chunks, error = await ask(client, served, max_tokens=2)
    assert b.requests[0].json["max_completion_tokens"] == 7
    assert error is None
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert outcomes(served)[-1] == ("a/up", "completed")


async def test_a_stop_string_across_the_seam(client):
    async with Upstream(cut(2)) as a, Upstream(writes()) as b:
        async with site(upstream_config(a.url, b.url)) as served:
            chunks, error = await ask(
                client, served, stop=["d1 word2"], stream_options={"include_usage": True}
            )
    assert (text_of(chunks), error) == ("word0 word1 ", None)
    assert_one_answer(chunks[:-1])
    assert chunks[-1]["usage"]["completion_tokens"] >= 2


async def test_completions_go_on_from_the_longer_prompt(client):
    def older(text, finish=None):
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": finish}
        return event(
            {
                "id": "cmpl-1",
                "object": "text_completion",
                "created": 1,
                "model": "up",
                "choices": [choice],
            }
        )

    broken = stream_of([older(" one"), older(" two")], then=hang_up())
    rest = stream_of([older(" two"), older(" three"), older("", "stop"), DONE])
    async with Upstream(broken) as a, Upstream(rest) as b:
        async with site(upstream_config(a.url, b.url)) as served:
            chunks, error = await ask(client, served, prompt="Count:", max_tokens=10)
    assert error is None
    assert "".join(one["choices"][0]["text"] for one in chunks) == " one two two three"
    assert (b.requests[0].json["prompt"], b.requests[0].json["max_tokens"]) == ("Count: one two", 8)


async def test_a_client_that_leaves_while_the_rest_is_asked_for(client):
    async with Upstream(cut(2)) as a, Upstream(waits(asyncio.Event())) as b:
        async with site(upstream_config(a.url, b.url)) as served:
            answer = await client.post(f"{served.base_url}/chat/completions", json=BODY)
            await b.until_requests()
            answer.close()
            await b.until_gone()
            async with asyncio.timeout(5):
                while not served.done:
                    await asyncio.sleep(0.001)
            assert served.router.inflight == 0
    assert [done.outcome for done in served.done] == ["client_gone"]


ENGINES = """
engines:
  s: {kind: simulated, ttft_ms: 1, tokens_per_s: 100, answer_tokens: 60}
  t: {kind: simulated, ttft_ms: 1, tokens_per_s: 400, answer_tokens: 60}
models:
  m: {policy: round_robin, targets: [{engine: s}, {engine: t}]}
  alone: {targets: [{engine: t}]}
"""


async def killed(client, served, name, **fields):
    """A stream whose engine ``name`` is killed after some text."""
    text = b""
    async with client.post(
        f"{served.base_url}/chat/completions", json={**BODY, **fields}
    ) as answer:
        while text.count(b'"content"') < 8:
            text += await answer.content.readuntil(b"\n\n")
        os.kill(served.router._nodes[name].pid, signal.SIGKILL)
        text += await answer.content.read()
    events = [one.removeprefix("data: ") for one in text.decode().split("\n\n") if one]
    assert events[-1] == "[DONE]", events[-1]
    return [json.loads(one) for one in events[:-1]]


async def test_another_engine_goes_on_exactly_where_one_was_killed(client):
    async with site(ENGINES) as served:
        whole, _ = await ask(client, served, model="alone", stream_options={"include_usage": True})
        chunks = await killed(client, served, "s", stream_options={"include_usage": True})
    assert text_of(chunks) == text_of(whole)
    assert_one_answer(chunks)
    assert chunks[-1]["usage"]["completion_tokens"] == whole[-1]["usage"]["completion_tokens"] == 60
    assert outcomes(served) == [("t", "continued")]


@needs_starter
async def test_a_killed_llamacpp_is_gone_on_with_by_another(client):
    engines = "".join(
        f"  {name}: {{kind: llamacpp, model: starter, threads: 1}}\n" for name in "st"
    )
    pair = "{policy: round_robin, targets: [{engine: s}, {engine: t}]}"
    targets = f"models: {{m: {pair}, alone: {{targets: [{{engine: t}}]}}}}\n"
    asked = {
        "messages": [{"role": "user", "content": "Tell me a story about a bear."}],
        "temperature": 0,
    }
    async with site(f"engines:\n{engines}{targets}") as served:
        whole, _ = await ask(client, served, model="alone", **asked)
        chunks = await killed(client, served, "s", **asked)
    assert text_of(chunks) == text_of(whole)
    assert_one_answer(chunks)
