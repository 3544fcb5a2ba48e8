"""OpenAI's own Python SDK, sync and async, streaming and not, over real sockets."""

from __future__ import annotations

import asyncio

import openai
import pytest

from tests.e2e.serving import SECRET, needs_starter, site, upstream_config
from tests.upstream import Upstream, cut

QUESTION = [{"role": "user", "content": "What is 12 + 7?"}]
STARTER = "engines: {s: {kind: llamacpp, model: starter, threads: 1}}\nmodels: {m: {targets: [{engine: s}]}}\n"
SIMULATED = (
    "engines: {s: {kind: simulated, ttft_ms: 1, tokens_per_s: 2000, answer_tokens: 12}}\n"
    "models: {m: {targets: [{engine: s}]}}\n"
)


def sync_both_ways(base_url):
    with openai.OpenAI(base_url=base_url, api_key=SECRET, max_retries=0) as client:
        whole = client.chat.completions.create(model="m", messages=QUESTION, temperature=0)
        with client.chat.completions.create(
            model="m",
            messages=QUESTION,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        ) as stream:
            chunks = list(stream)
    return whole, chunks


async def async_both_ways(base_url):
    async with openai.AsyncOpenAI(base_url=base_url, api_key=SECRET, max_retries=0) as client:
        whole = await client.chat.completions.create(model="m", messages=QUESTION, temperature=0)
        chunks = []
        stream = await client.chat.completions.create(
            model="m",
            messages=QUESTION,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        async with stream:
            async for chunk in stream:
                chunks.append(chunk)
    return whole, chunks


def text_of(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def assert_whole(whole, chunks):
    assert whole.object == "chat.completion"
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.content
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [
        c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason
    ] in (
        ["stop"],
        ["length"],
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0


async def both_ways(how, base_url):
    if how == "sync":
        return await asyncio.to_thread(sync_both_ways, base_url)
    return await async_both_ways(base_url)


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_through_two_upstreams(how):
    async with (
        Upstream() as one,
        Upstream() as two,
        site(upstream_config(one.url, two.url)) as served,
    ):
        whole, chunks = await both_ways(how, served.base_url)
        assert_whole(whole, chunks)
        assert whole.choices[0].message.content == "Hello there."
        assert text_of(chunks) == "word0 word1 word2 "
        assert [len(one.requests), len(two.requests)] == [1, 1]
        assert [seen.json["model"] for seen in one.requests + two.requests] == ["up", "up"]
        assert SECRET not in str([seen.headers for seen in one.requests + two.requests])


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("engine", ["simulated", pytest.param("starter", marks=needs_starter)])
async def test_from_an_embedded_engine(how, engine):
    async with site(STARTER if engine == "starter" else SIMULATED) as served:
        whole, chunks = await both_ways(how, served.base_url)
        assert_whole(whole, chunks)
        if engine == "starter":
            assert "19" in whole.choices[0].message.content
            assert "19" in text_of(chunks)


async def test_errors_are_the_sdks_own():
    async with Upstream() as up, site(upstream_config(up.url)) as served:
        async with openai.AsyncOpenAI(
            base_url=served.base_url, api_key=SECRET, max_retries=0
        ) as client:
            with pytest.raises(openai.NotFoundError) as missing:
                await client.chat.completions.create(model="nope", messages=QUESTION)
            with pytest.raises(openai.BadRequestError) as bad:
                await client.chat.completions.create(model="m", messages=QUESTION, temperature=3)
            models = await client.models.list()
            model = await client.models.retrieve("M")
        async with openai.AsyncOpenAI(
            base_url=served.base_url, api_key="sk-wrong-key", max_retries=0
        ) as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()
    assert missing.value.code == "model_not_found"
    assert (bad.value.param, bad.value.code) == ("temperature", "decimal_above_max_value")
    assert [one.id for one in models.data] == ["m"] == [model.id]


async def test_a_cut_stream_raises_in_the_sdk():
    async with Upstream(default=cut(2)) as up, site(upstream_config(up.url)) as served:
        async with openai.AsyncOpenAI(
            base_url=served.base_url, api_key=SECRET, max_retries=0
        ) as client:
            stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
            texts = []
            with pytest.raises(openai.APIError, match="before its answer was whole"):
                async for chunk in stream:
                    texts.append(chunk.choices[0].delta.content)
            await stream.close()
    assert "".join(texts) == "word0 word1 "
    assert [done.outcome for done in served.done] == ["stream_cut"]
