"""What real upstreams send, through the whole server, under any segmentation: it reaches the client unharmed.

Each stream is in the shape of one provider's, as recorded answers of eleven have them. What may change: line ends
become LF, a byte order mark and comments before the first data go, and so does usage that only the router asked for.
"""

from __future__ import annotations

import json

import aiohttp
import openai
import pytest

from tests.e2e.serving import SECRET, site, upstream_config
from tests.upstream import (
    CREATED,
    DONE,
    USAGE,
    Upstream,
    at_random,
    by_byte,
    encode,
    event,
    json_answer,
    stream_of,
    whole,
)

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
SHOWN = {**BODY, "stream_options": {"include_usage": True}}


def piece(choices, **extra):
    base = {"id": "x-1", "object": "chat.completion.chunk", "created": CREATED, "model": "up"}
    return {**base, "choices": choices, **extra}


def choice(delta, finish=None, **extra):
    return {"index": 0, "delta": delta, "finish_reason": finish, **extra}


def stream(*values):
    return b"".join(event(value) for value in values) + DONE


def call(**fields):
    return choice({"tool_calls": [fields]})


ROLE = piece([choice({"role": "assistant", "content": ""})])
TEXT = piece([choice({"content": "Hé 😀"})])
STOP = piece([choice({}, "stop")])
FUNCTION = {"name": "f", "arguments": ""}
AZURE_FIRST = {
    "choices": [],
    "created": 0,
    "id": "",
    "model": "",
    "object": "",
    "prompt_filter_results": [{}],
}

STREAMS = {
    "openai": stream(ROLE, TEXT, STOP, piece([], usage=USAGE)),
    "openai, obfuscated": stream(piece([choice({"content": "a"})], usage=None, obfuscation="x8"), STOP),
    "azure": stream(AZURE_FIRST, ROLE, piece([choice({"content": "a"}, content_filter_results={})]), STOP),
    "azure with usage": stream(AZURE_FIRST, ROLE, TEXT, STOP, piece([], id="", usage=USAGE)),
    "deepseek": stream(
        piece([choice({"role": "assistant", "content": None, "reasoning_content": "Hm."})], usage=None),
        TEXT, piece([choice({"content": "", "reasoning_content": None}, "stop")], usage=USAGE),
    ),
    "groq": stream(ROLE, TEXT, piece([choice({}, "stop")], x_groq={"id": "req_1", "usage": USAGE})),
    "perplexity": stream(
        *(piece([choice({"content": "a"})], usage=USAGE, citations=["https://x.test"]) for _ in range(3)),
        piece([choice({"content": ""}, "stop")], usage=USAGE, search_results=[]),
    ),
    "xai": stream(ROLE, TEXT, STOP, piece([], usage={**USAGE, "total_tokens": 999, "num_sources_used": 0})),
    "mistral": stream(
        ROLE, piece([choice({"content": "", "tool_calls": [{"id": "a1", "function": FUNCTION}]}, "tool_calls")],
                    usage=USAGE, p="abcdef"),
    ),
    "tools from 1": stream(
        ROLE, piece([call(index=1, id="c1", type="function", function=FUNCTION)]),
        piece([call(index=1, function={"arguments": '{"a": "data: {\\n\\n"}'})]), piece([choice({}, "tool_calls")]),
    ),
    "two choices": stream(
        *(piece([{**choice({"content": "a"}), "index": i}]) for i in (0, 1)),
        *(piece([{**choice({}, "stop"), "index": i}]) for i in (1, 0)),
    ),
    "logprobs": stream(piece([choice({"content": "a"}, logprobs={"content": [], "refusal": None})]), STOP),
    "refusal": stream(piece([choice({"refusal": "No."})]), piece([choice({}, "content_filter")])),
    "audio": stream(piece([choice({"audio": {"id": "a", "data": "UklGRg=="}})]), STOP),
    "words that look like structure": stream(
        piece([choice({"content": 'data: [DONE]\n\n "error" "usage":{"a":1} "choices":[]'})]), STOP,
    ),
    "separators with spaces": b"".join(
        b"data: " + json.dumps(one).encode() + b"\n\n" for one in (ROLE, TEXT, STOP)
    ) + DONE,
    "comments between": event(ROLE) + b": ping\n\n" + event(TEXT) + b":\n\n" + event(STOP) + DONE,
    "ids and names": b"".join(
        b"event: message\nid: %d\n" % at + event(one) for at, one in enumerate((ROLE, TEXT, STOP))
    ) + DONE,
    "no space after data": stream(ROLE, TEXT, STOP).replace(b"data: {", b"data:{"),
    "several data lines": b'data: {"choices":[{"index":0,\ndata: "delta":{"content":"a"},"finish_reason":null}]}\n\n'
    + event(STOP) + DONE,
}  # fmt: skip
SPELLINGS = {
    "as it is": (lambda sent: sent),
    "CRLF": (lambda sent: sent.replace(b"\n", b"\r\n")),
    "CR": (lambda sent: sent.replace(b"\n", b"\r")),
    "byte order mark": (lambda sent: b"\xef\xbb\xbf" + sent),
    "comment first": (lambda sent: b": PROCESSING\n\n: PROCESSING\n\n" + sent),
}
SEGMENTS = {
    "whole": whole,
    "by byte": by_byte,
    "at random": at_random(7),
}


async def post(served, body):
    headers = {"Authorization": f"Bearer {SECRET}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{served.base_url}/chat/completions", json=body) as answer,
    ):
        assert answer.status == 200
        return await answer.read()


@pytest.mark.parametrize("provider", STREAMS)
async def test_a_stream_reaches_the_client_unharmed(provider):
    sent = STREAMS[provider]
    n = {"n": 2} if provider == "two choices" else {}
    async with Upstream() as up, site(upstream_config(up.url)) as served:
        for spell in SPELLINGS.values():
            for pieces in SEGMENTS.values():
                up.script(stream_of([spell(sent)], pieces=pieces))
                assert await post(served, SHOWN | n) == sent
    assert {one.outcome for one in served.done} == {"ok"}
    counted = {one.output_tokens for one in served.done}
    assert counted == ({3} if b'"completion_tokens"' in sent else {None})


@pytest.mark.parametrize("pieces", SEGMENTS)
@pytest.mark.parametrize("provider", ["openai", "azure with usage", "xai"])
async def test_usage_that_only_the_router_asked_for_is_left_out(provider, pieces):
    sent = STREAMS[provider]
    *rest, _usage, _done = sent.split(b"\n\n")[:-1]
    async with Upstream(stream_of([sent], pieces=SEGMENTS[pieces])) as up:
        async with site(upstream_config(up.url)) as served:
            got = await post(served, BODY)
    assert got == b"\n\n".join(rest) + b"\n\n" + DONE
    assert up.requests[0].json["stream_options"] == {"include_usage": True}
    assert [one.output_tokens for one in served.done] == [3]


@pytest.mark.parametrize("provider", ["perplexity", "deepseek", "groq", "mistral"])
async def test_usage_that_comes_unasked_stays(provider):
    async with (
        Upstream(stream_of([STREAMS[provider]])) as up,
        site(upstream_config(up.url)) as served,
    ):
        got = await post(served, BODY)
    assert got.count(b'"prompt_tokens"') == STREAMS[provider].count(b'"prompt_tokens"')


async def test_the_sdk_reads_all_of_it():
    async with Upstream() as up, site(upstream_config(up.url)) as served:
        async with openai.AsyncOpenAI(
            base_url=served.base_url, api_key=SECRET, max_retries=0
        ) as client:
            for sent in STREAMS.values():
                up.script(stream_of([sent], pieces=at_random(3)))
                chunks = [chunk async for chunk in await client.chat.completions.create(**BODY)]
                assert any(one.choices and one.choices[0].finish_reason for one in chunks)
            up.script(stream_of([STREAMS["deepseek"]]))
            first, *_ = [chunk async for chunk in await client.chat.completions.create(**BODY)]
    assert first.choices[0].delta.reasoning_content == "Hm."


async def test_a_whole_answer_passes_byte_for_byte():
    answer = encode({
        "id": "", "choices": [{"index": 0, "message": {"role": "assistant", "content": "a", "reasoning_content": "b"},
                               "finish_reason": "stop"}],
        "usage": {**USAGE, "total_tokens": 999}, "citations": ["x"], "x_groq": {"id": "1"},
    })  # fmt: skip
    async with (
        Upstream(json_answer(b" \n" + answer + b"\n")) as up,
        site(upstream_config(up.url)) as served,
    ):
        body = {name: value for name, value in BODY.items() if name != "stream"}
        assert (await post(served, body)).strip() == answer


async def test_the_routers_headers_stand_beside_an_upstreams():
    headers = {"x-request-id": "theirs", "openai-processing-ms": "99999", "openai-version": "1999-01-01",
               "x-served-by": "gpu-7"}  # fmt: skip
    async with Upstream(stream_of([STREAMS["openai"]], headers=headers)) as up:
        async with site(upstream_config(up.url)) as served, aiohttp.ClientSession() as session:
            mine = {"Authorization": f"Bearer {SECRET}", "x-request-id": "mine"}
            async with session.post(
                f"{served.base_url}/chat/completions", json=BODY, headers=mine
            ) as answer:
                await answer.read()
                got = answer.headers
    assert got["x-request-id"] == "mine"
    assert got["openai-version"] == "2020-10-01"
    assert 0 <= int(got["openai-processing-ms"]) < 5000
    assert up.requests[0].headers["x-request-id"] == "mine"
