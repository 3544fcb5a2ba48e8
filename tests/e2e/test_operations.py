"""Completions, embeddings, fields of other dialects: which target gets them, and what it gets."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import msgspec
import pytest

from router.app import Pricing
from router.server import connection
from router.wire.sse import KEEP_ALIVE
from tests.e2e.serving import SECRET, site, upstream_config
from tests.operations import EMBEDDED, text_completion, text_events
from tests.upstream import Upstream, encode, event, json_answer, status, stream_of, waits

HEADERS = {"Authorization": f"Bearer {SECRET}"}
ENGINE = "engines: {s: {kind: simulated, ttft_ms: 1}}\nmodels: {m: {targets: [{engine: s}]}}\n"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


async def post(served, path, body, **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession(headers=HEADERS | headers) as session,
        session.post(f"{served.base_url}/{path}", data=data) as answer,
    ):
        return answer.status, await answer.read()


async def test_a_completion_passes_byte_for_byte_but_for_its_model():
    answer = encode(text_completion())
    async with Upstream(json_answer(answer)) as up, site(upstream_config(up.url)) as served:
        code, got = await post(
            served, "completions", b'{ "prompt" : ["Hi"], "model":"m", "echo":true,"n": 1 }'
        )
    assert (code, got) == (200, answer)
    assert up.requests[0].line == "POST /v1/completions HTTP/1.1"
    assert up.requests[0].body == b'{ "prompt" : ["Hi"], "model":"up", "echo":true,"n": 1 }'
    assert [(one.outcome, one.input_tokens, one.output_tokens) for one in served.done] == [
        ("ok", 10, 3)
    ]


async def test_a_completion_streams_and_is_counted():
    sent = text_events()
    async with Upstream(default=stream_of(sent)) as up, site(upstream_config(up.url)) as served:
        body = {"model": "m", "prompt": "Hi", "stream": True}
        code, hidden = await post(served, "completions", body)
        _, shown = await post(
            served, "completions", {**body, "stream_options": {"include_usage": True}}
        )
    assert code == 200
    assert shown == b"".join(sent)
    assert b'"usage"' not in hidden
    assert hidden.endswith(b"data: [DONE]\n\n")
    assert up.requests[0].json["stream_options"] == {"include_usage": True}
    assert [(one.outcome, one.output_tokens) for one in served.done] == [("ok", 3), ("ok", 3)]


async def test_a_completion_of_several_prompts_is_whole_when_all_are():
    one, two = (event({**text_completion(index=i)}) for i in (0, 1))
    done = b"data: [DONE]\n\n"
    body = {"model": "m", "prompt": ["a", "b"], "stream": True}
    async with Upstream(stream_of([one, two, done])) as up, site(upstream_config(up.url)) as served:
        assert (await post(served, "completions", body))[0] == 200
    assert [one.outcome for one in served.done] == ["ok"]


async def test_embeddings_pass_and_are_counted():
    answer = encode(EMBEDDED)
    async with Upstream(json_answer(answer)) as up, site(upstream_config(up.url)) as served:
        code, got = await post(
            served, "embeddings", {"model": "m", "input": ["a", "b"], "dimensions": 2}
        )
    assert (code, got) == (200, answer)
    assert up.requests[0].line == "POST /v1/embeddings HTTP/1.1"
    assert up.requests[0].json == {"model": "up", "input": ["a", "b"], "dimensions": 2}
    assert [(one.outcome, one.input_tokens, one.output_tokens) for one in served.done] == [
        ("ok", 4, None)
    ]


async def test_embeddings_are_asked_for_elsewhere_where_they_fail():
    async with (
        Upstream(default=status(500)) as bad,
        Upstream(default=json_answer(encode(EMBEDDED))) as good,
    ):
        async with site(upstream_config(bad.url, good.url)) as served:
            answers = [
                await post(served, "embeddings", {"model": "m", "input": "a"}) for _ in range(4)
            ]
    assert [code for code, _ in answers] == [200] * 4


@pytest.mark.parametrize("answer", [b"{}", b'{"data":[]}', b"<html>", b'{"data":3}'])
async def test_what_is_no_embedding_is_an_error(answer):
    async with Upstream(default=json_answer(answer)) as up, site(upstream_config(up.url)) as served:
        code, got = await post(served, "embeddings", {"model": "m", "input": "a"})
    assert code == 502
    assert json.loads(got)["error"]["code"] == "malformed_answer"


async def test_an_engine_makes_no_embeddings():
    async with site(ENGINE) as served:
        code, got = await post(served, "embeddings", {"model": "m", "input": "a"})
    assert code == 404
    message = "The model `m` does not support the v1/embeddings endpoint."
    error = {"message": message, "type": "invalid_request_error", "param": "model", "code": None}
    assert json.loads(got) == {"error": error}


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("completions", {"model": "m", "prompt": []}, "prompt", "empty_array"),
        ("completions", {"model": "m", "prompt": 3}, "prompt", "invalid_type"),
        ("completions", {"model": "m", "prompt": ["a", 3]}, "prompt[1]", "invalid_type"),
        ("completions", {"model": "m", "prompt": [[]]}, "prompt[0]", "empty_array"),
        ("completions", {"model": "m", "prompt": "a", "logprobs": 6}, "logprobs", "integer_above_max_value"),
        ("completions", {"model": "m", "prompt": "a", "best_of": 21}, "best_of", "integer_above_max_value"),
        ("completions", {"model": "m", "prompt": "a", "best_of": 1, "n": 2}, None, None),
        ("completions", {"model": "m", "prompt": "a", "best_of": 2, "stream": True}, "best_of", None),
        ("completions", {"model": "m", "prompt": "a", "max_tokens": -1}, "max_tokens", "integer_below_min_value"),
        ("completions", {"model": "m", "prompt": "a", "stream_options": {}}, "stream_options", None),
        ("completions", {"model": "m", "prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", None),
        ("completions", {"model": "m", "messages": []}, None, None),
        ("completions", {"prompt": "a"}, None, None),
        ("completions", b'{"model":"m","prompt":"a","n":1,"n":2}', "n", "invalid_value"),
        ("embeddings", {"model": "m"}, "input", "missing_required_parameter"),
        ("embeddings", {"model": "m", "input": []}, "input", "empty_array"),
        ("embeddings", {"model": "m", "input": ["a"] * 2049}, "input", "array_above_max_length"),
        ("embeddings", {"model": "m", "input": ["a", [3]]}, "input[1]", "invalid_type"),
        ("embeddings", {"model": "m", "input": "a", "encoding_format": "x"}, "encoding_format", "invalid_value"),
        ("embeddings", {"model": "m", "input": "a", "dimensions": 0}, "dimensions", "integer_below_min_value"),
        ("embeddings", {"model": "m", "input": "a", "stream": True}, None, None),
        ("embeddings", {"input": "a"}, None, None),
        ("embeddings", b'{"model":"m","input":"a","input":"b"}', "input", "invalid_value"),
    ],
)  # fmt: skip
async def test_a_bad_parameter_never_leaves(path, body, param, code):
    async with Upstream() as up, site(upstream_config(up.url)) as served:
        answered, got = await post(served, path, body)
    error = json.loads(got)["error"]
    assert (answered, error["type"]) == (400, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, code)
    assert list(error) == ["message", "type", "param", "code"]
    assert up.requests == []


async def test_attempts_go_on_while_comments_keep_the_stream_alive(monkeypatch):
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.02)
    gate = asyncio.Event()
    async with Upstream(default=waits(gate, status(500))) as bad, Upstream() as good:
        async with site(upstream_config(bad.url, good.url)) as served:
            asked = asyncio.create_task(post(served, "chat/completions", {**CHAT, "stream": True}))
            await bad.until_requests()
            await asyncio.sleep(0.05)
            gate.set()
            code, got = await asked
    assert code == 200
    assert got.startswith(KEEP_ALIVE)
    assert got.endswith(b"data: [DONE]\n\n")
    assert [(one.outcome, one.attempts) for one in served.done] == [("ok", 2)]


async def test_a_model_is_listed_with_both_field_sets():
    async with Upstream() as up, site(upstream_config(up.url)) as served:
        async with aiohttp.ClientSession(headers=HEADERS) as session:
            async with session.get(f"{served.base_url}/models") as answer:
                listed = await answer.json()
        card = served.router.model("m")
    (model,) = listed["data"]
    assert (listed["object"], model["object"], model["id"], model["name"]) == (
        "list",
        "model",
        "m",
        "m",
    )
    assert model.keys() == {
        "id", "object", "created", "owned_by", "name", "context_length", "max_completion_tokens",
    }  # fmt: skip
    priced = msgspec.structs.replace(card, pricing=Pricing("0.00000008", "0.00000008"))
    assert json.loads(msgspec.json.encode(priced))["pricing"]["prompt"] == "0.00000008"


# Fields of other dialects.


def two_targets(one, two):
    return (
        f"providers:\n  a: {{base_url: {one.url!r}, extra_fields: [top_k, min_p]}}\n"
        f"  b: {{base_url: {two.url!r}, extra_fields: [top_k]}}\n"
        "models: {m: {policy: round_robin, targets: [{provider: a, model: up}, {provider: b, model: up}]},"
        " n: {targets: [{provider: b}]}}\n"
    )


async def test_an_extra_field_goes_only_to_who_takes_it_and_byte_for_byte():
    async with Upstream() as one, Upstream() as two, site(two_targets(one, two)) as served:
        body = json.dumps(CHAT)[:-1]
        for _ in range(3):
            assert (
                await post(
                    served, "chat/completions", (body + ', "min_p" : 5e-2,"top_k":7}').encode()
                )
            )[0] == 200
        assert (len(one.requests), len(two.requests)) == (3, 0)
        assert one.requests[0].body.endswith(b', "min_p" : 5e-2,"top_k":7}')
        for _ in range(4):
            assert (await post(served, "chat/completions", {**CHAT, "top_k": 3}))[0] == 200
        assert (len(one.requests), len(two.requests)) == (5, 2)


@pytest.mark.parametrize(
    "fields",
    [{"colour": "red"}, {"top_k": 3, "colour": "red"}, {"model": "n", "min_p": 0.1}],
    ids=str,
)
async def test_an_extra_field_that_nobody_takes_is_refused(fields):
    async with Upstream() as one, Upstream() as two, site(two_targets(one, two)) as served:
        code, got = await post(served, "chat/completions", {**CHAT, **fields})
    assert code == 400
    name = list(fields)[-1]
    assert json.loads(got)["error"]["message"] == f"Unrecognized request argument supplied: {name}"
    assert one.requests == two.requests == []


async def test_an_extra_field_is_not_retried_where_it_is_not_taken():
    async with (
        Upstream(default=status(500)) as one,
        Upstream() as two,
        site(two_targets(one, two)) as served,
    ):
        code, _ = await post(served, "chat/completions", {**CHAT, "min_p": 0.1})
    assert code == 502
    assert two.requests == []


async def test_an_engine_takes_samplers_and_no_other_field():
    async with Upstream() as up:
        config = (
            f"providers: {{a: {{base_url: {up.url!r}, extra_fields: [top_a]}}}}\n"
            "engines: {s: {kind: simulated, ttft_ms: 1}}\n"
            "models: {m: {targets: [{engine: s}]}, both: {targets: [{engine: s}, {provider: a}]},"
            " p: {targets: [{provider: a}]}}\n"
        )
        async with site(config) as served:

            async def ask(**fields):
                return await post(served, "chat/completions", {**CHAT, **fields})

            for _ in range(3):
                assert (await ask(top_k=3, min_p=0.1, model="both"))[0] == 200
            assert up.requests == []
            code, got = await ask(top_k=-3)
            assert (code, json.loads(got)["error"]["param"]) == (400, "top_k")
            assert (await ask(top_a=0.3))[0] == 400
            assert (await ask(top_k=3, model="p"))[0] == 400
            for _ in range(3):
                assert (await ask(top_a=0.3, model="both"))[0] == 200
            assert (await ask(top_a=0.3, top_k=3, model="both"))[0] == 400
    assert len(up.requests) == 3
