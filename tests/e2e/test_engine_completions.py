"""The older endpoint served by engines, as OpenAI's SDK asks for it."""

from __future__ import annotations

import json

import aiohttp
import openai
import pytest

from engines.simulated.engine import SimulatedEngine
from engines.specs import SimulatedSpec
from tests.backends.test_engine_completions import REFUSALS
from tests.e2e.serving import SECRET, needs_starter, site
from tests.operations import any_operation
from tests.upstream import Upstream

STARTER = "engines: {s: {kind: llamacpp, model: starter, threads: 1}}\nmodels: {m: {targets: [{engine: s}]}}\n"
SIMULATED = "engines: {s: {kind: simulated}}\nmodels: {m: {targets: [{engine: s}]}}\n"
FAST = SimulatedSpec(ttft_ms=1, tokens_per_s=5000, answer_tokens=60)
ENGINES = ["simulated", pytest.param("starter", marks=needs_starter)]
PROMPT = "Once upon a time"


def serving(engine):
    if engine == "starter":
        return site(STARTER)
    return site(SIMULATED, {"s": SimulatedEngine(FAST)})


def client_of(served):
    return openai.AsyncOpenAI(base_url=served.base_url, api_key=SECRET, max_retries=0)


@pytest.mark.parametrize("engine", ENGINES)
async def test_an_engine_goes_on_with_a_text_in_every_way_that_the_sdk_asks(engine):
    async with serving(engine) as served, client_of(served) as client:
        plain = await goes_on(client)
        await streams(client, plain)
        await echoes(client, plain)
        await shows_logprobs(client, plain)
        await stops(client, plain)
        await serves_several_prompts(client, plain)
    assert {one.outcome for one in served.done} == {"ok"}
    assert all(one.input_tokens and one.output_tokens for one in served.done)


def ask(client, **how):
    return client.completions.create(
        **{"model": "m", "prompt": PROMPT, "temperature": 0, "seed": 1, "max_tokens": 8, **how}
    )


async def goes_on(client):
    answer = await ask(client)
    assert (answer.object, answer.model, answer.id[:5]) == ("text_completion", "m", "cmpl-")
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert answer.usage.completion_tokens == 8
    default = await client.completions.create(model="m", prompt=PROMPT, seed=1, temperature=0)
    assert default.usage.completion_tokens <= 16
    assert default.choices[0].text.startswith(choice.text)
    return choice.text


async def streams(client, plain):
    stream = await ask(client, n=2, stream=True, stream_options={"include_usage": True})
    *pieces, last = [piece async for piece in stream]
    texts, reasons = ["", ""], [[], []]
    for piece in pieces:
        (choice,) = piece.choices
        texts[choice.index] += choice.text
        reasons[choice.index].append(choice.finish_reason)
    assert texts[0] == plain
    assert texts[1]
    assert all(told[-1] == "length" and set(told[:-1]) == {None} for told in reasons)
    assert (last.choices, last.usage.completion_tokens) == ([], 16)


async def echoes(client, plain):
    answer = await ask(client, echo=True, n=2)
    assert answer.choices[0].text == PROMPT + plain
    assert answer.choices[1].text.startswith(PROMPT)
    stream = await ask(client, echo=True, stream=True)
    pieces = [piece.choices[0].text async for piece in stream]
    assert pieces[0] == PROMPT
    assert "".join(pieces) == PROMPT + plain


async def shows_logprobs(client, plain):
    shown = (await ask(client, logprobs=2)).choices[0].logprobs
    assert "".join(shown.tokens) == plain
    assert all(logprob <= 0 for logprob in shown.token_logprobs)
    for token, top in zip(shown.tokens, shown.top_logprobs, strict=True):
        assert 2 <= len(top) <= 3
        assert token in top
    for token, offset in zip(shown.tokens, shown.text_offset, strict=True):
        assert (PROMPT + plain)[offset:].startswith(token)
    stream = await ask(client, logprobs=2, stream=True)
    offsets = []
    async for piece in stream:
        if piece.choices[0].logprobs is not None:
            offsets += piece.choices[0].logprobs.text_offset
    assert offsets == shown.text_offset
    bare = (await ask(client, logprobs=0)).choices[0].logprobs
    assert [list(top) for top in bare.top_logprobs] == [[token] for token in shown.tokens]


async def stops(client, plain):
    stop = plain[3:5]
    answer = await ask(client, stop=stop)
    assert answer.choices[0].text == plain[: plain.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


async def serves_several_prompts(client, plain):
    answer = await ask(client, prompt=["The sea is", PROMPT], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[2].text == plain
    assert answer.choices[0].text != plain
    alone = await ask(client, n=2)
    assert answer.usage.prompt_tokens > alone.usage.prompt_tokens


@pytest.mark.parametrize(("fields", "param", "code", "message"), REFUSALS, ids=str)
async def test_what_engines_lack_is_refused_in_openais_shape(fields, param, code, message):
    headers = {"Authorization": f"Bearer {SECRET}"}
    body = {"model": "m", "prompt": "a", **fields}
    async with serving("simulated") as served:
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(f"{served.base_url}/completions", json=body) as answer,
        ):
            got = json.loads(await answer.read())
    assert answer.status == 400
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    assert got == {"error": error}


async def test_a_prompt_too_long_is_a_400_that_names_it():
    async with serving("simulated") as served, client_of(served) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(model="m", prompt="word " * 200_000)
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")


async def test_what_an_engine_lacks_goes_to_a_provider_that_may_have_it():
    async with Upstream(default=any_operation()) as up:
        config = (
            f"providers: {{a: {{base_url: {up.url!r}}}}}\nengines: {{s: {{kind: simulated}}}}\n"
            "models: {m: {policy: round_robin, targets: [{engine: s}, {provider: a}]}}\n"
        )
        engines = {"s": SimulatedEngine(FAST)}
        async with site(config, engines) as served, client_of(served) as client:
            for _ in range(3):
                answer = await client.completions.create(model="m", prompt="a", suffix="b")
                assert answer.choices[0].text == " there"
            assert len(up.requests) == 3
            for _ in range(4):
                await client.completions.create(model="m", prompt="a")
    assert len(up.requests) == 5
