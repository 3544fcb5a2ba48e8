"""OpenAI's Python SDK, beyond a question and an answer: parsed answers, tools, its stream helper, headers, retries."""

from __future__ import annotations

import json
from typing import Literal

import openai
import pydantic
import pytest

from engines.simulated.engine import SimulatedEngine
from engines.specs import SimulatedSpec
from engines.starter import gguf_path
from tests.e2e.serving import SECRET, site, upstream_config
from tests.operations import any_operation
from tests.upstream import Upstream, rate_limited

QUESTION = [{"role": "user", "content": "What is 12 + 7?"}]
ASKS_WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
STARTER = "engines: {s: {kind: llamacpp, model: starter, threads: 1}}\nmodels: {m: {targets: [{engine: s}]}}\n"
SIMULATED = "engines: {s: {kind: simulated}}\nmodels: {m: {targets: [{engine: s}]}}\n"
FAST = SimulatedSpec(ttft_ms=1, tokens_per_s=5000, answer_tokens=60)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather in a city.",
        "strict": True,
        "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
            "additionalProperties": False,
        },
    },
}  # fmt: skip
FORCED = {"type": "function", "function": {"name": "get_weather"}}
ENGINES = [
    "simulated",
    pytest.param(
        "starter",
        marks=pytest.mark.skipif(not gguf_path().exists(), reason="the starter model isn't built"),
    ),
]


class Verdict(pydantic.BaseModel):
    """Closed words only: a small model could write digits for ever."""

    answer: Literal["yes", "no"]
    sure: bool


def serving(engine):
    if engine == "starter":
        return site(STARTER)
    return site(SIMULATED, {"s": SimulatedEngine(FAST)})


def client_of(served, **how):
    return openai.AsyncOpenAI(base_url=served.base_url, api_key=SECRET, **{"max_retries": 0, **how})


@pytest.mark.parametrize("engine", ENGINES)
async def test_an_engines_answers_in_every_way_that_the_sdk_asks(engine):
    async with serving(engine) as served, client_of(served) as client:
        await parses(client)
        await streams_a_tool_call(client)
        await streams_through_the_helper(client)
        await counts_choices(client)
        await shows_logprobs(client)


async def parses(client):
    answer = await client.chat.completions.parse(
        model="m", messages=QUESTION, response_format=Verdict, temperature=0, max_tokens=200
    )
    assert isinstance(answer.choices[0].message.parsed, Verdict)


async def streams_a_tool_call(client):
    asked = {
        "model": "m",
        "messages": ASKS_WEATHER,
        "tools": [WEATHER],
        "tool_choice": FORCED,
        "temperature": 0,
    }
    whole = await client.chat.completions.create(**asked)
    call = whole.choices[0].message.tool_calls[0]
    assert (whole.choices[0].finish_reason, call.type, call.function.name) == (
        "stop",  # as OpenAI ends a call that was forced by name
        "function",
        "get_weather",
    )
    assert isinstance(json.loads(call.function.arguments)["city"], str)
    async with client.chat.completions.stream(**asked) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    assert "tool_calls.function.arguments.done" in kinds
    streamed = final.choices[0].message.tool_calls[0]
    assert streamed.function.parsed_arguments.keys() == {"city"}
    answered = await client.chat.completions.create(
        model="m",
        messages=[
            *ASKS_WEATHER,
            {"role": "assistant", "tool_calls": [call.model_dump()]},
            {"role": "tool", "tool_call_id": call.id, "content": "Sunny."},
        ],
        tools=[WEATHER],
    )
    assert answered.choices[0].finish_reason


async def streams_through_the_helper(client):
    options = {"include_usage": True}
    async with client.chat.completions.stream(
        model="m", messages=QUESTION, stream_options=options
    ) as stream:
        deltas = [event.delta async for event in stream if event.type == "content.delta"]
        final = await stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content
    assert final.usage.total_tokens == final.usage.prompt_tokens + final.usage.completion_tokens


async def counts_choices(client):
    answer = await client.chat.completions.create(
        model="m", messages=QUESTION, n=2, max_tokens=5, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    async with client.chat.completions.stream(
        model="m", messages=QUESTION, n=2, max_tokens=5
    ) as stream:
        async for _ in stream:
            pass
        choices = stream.current_completion_snapshot.choices
    assert [choice.index for choice in choices] == [0, 1]
    assert all(choice.finish_reason and choice.message.content for choice in choices)


async def shows_logprobs(client):
    answer = await client.chat.completions.create(
        model="m", messages=QUESTION, logprobs=True, top_logprobs=2, max_tokens=4, temperature=0
    )
    tokens = answer.choices[0].logprobs.content
    assert (
        "".join(token.token for token in tokens).strip()
        == answer.choices[0].message.content.strip()
    )
    assert all(len(token.top_logprobs) == 2 for token in tokens)


async def test_raw_headers():
    async with serving("simulated") as served, client_of(served) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="m", messages=QUESTION, extra_headers={"x-request-id": "mine-1"}
        )
    assert raw.parse().choices[0].message.content
    assert raw.headers["x-request-id"] == raw.request_id == "mine-1"
    assert raw.headers["openai-version"] == "2020-10-01"
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert raw.headers["x-nenya-target"] == "s"


async def test_the_sdk_waits_as_a_429_asks_and_tries_again():
    config = "retry: {attempts: 1}\n"
    async with (
        Upstream(rate_limited("1")) as up,
        site(upstream_config(up.url, extra=config)) as served,
    ):
        async with client_of(served, max_retries=2) as client:
            answer = await client.chat.completions.create(model="m", messages=QUESTION)
    assert answer.choices[0].message.content == "Hello there."
    assert [one.status for one in served.done] == [429, 200]
    assert len(up.requests) == 2


async def test_a_429_tells_when_to_come_back():
    async with Upstream(default=rate_limited("7")) as up:
        config = "retry: {attempts: 1}\n"
        async with (
            site(upstream_config(up.url, extra=config)) as served,
            client_of(served) as client,
        ):
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(model="m", messages=QUESTION)
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.response.headers["retry-after"] == "7"
    assert 0 < int(caught.value.response.headers["retry-after-ms"]) <= 7000


async def test_completions_and_embeddings():
    async with Upstream(default=any_operation()) as up, site(upstream_config(up.url)) as served:
        async with client_of(served) as client:
            text = await client.completions.create(model="m", prompt=["a", "b"])
            stream = await client.completions.create(model="m", prompt="a", stream=True)
            pieces = [piece.choices[0].text async for piece in stream]
            vectors = await client.embeddings.create(model="m", input="a", encoding_format="float")
    assert [choice.text for choice in text.choices] == [" there", " there"]
    assert "".join(pieces) == " there"
    assert vectors.data[0].embedding == [0.5, -1.0]
    assert vectors.usage.total_tokens == 4


async def test_the_sdk_raises_openais_errors_for_bad_histories():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    async with serving("simulated") as served, client_of(served) as client:
        with pytest.raises(
            openai.BadRequestError, match="must be followed by tool messages"
        ) as caught:
            await client.chat.completions.create(
                model="m", messages=[*QUESTION, {"role": "assistant", "tool_calls": [call]}]
            )
        with pytest.raises(openai.NotFoundError, match="does not support the v1/embeddings"):
            await client.embeddings.create(model="m", input="a")
    assert caught.value.param == "messages.[2].role"
