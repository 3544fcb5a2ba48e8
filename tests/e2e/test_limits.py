"""Limits, budgets and rights as a client of OpenAI's SDK meets them, over real sockets."""

from __future__ import annotations

import asyncio
import re

import aiohttp
import openai
import pytest

from router.app import Router
from router.config.reader import parse
from tests.e2e.serving import PORTS, served_by, upstream_config
from tests.upstream import Upstream, json_answer, stall, status

LIMITED, FREE, FEW, POOR, OLD = (
    f"sk-{name}-0123456789" for name in ("limited", "free", "few", "poor", "old")
)
KEYS = f"""
tiers:
  slow: {{rpm: 60, rpd: 100, tpm: 40000}}
  tiny: {{tpm: 40}}
keys:
  - {{id: limited, secret: {LIMITED}, tier: slow}}
  - {{id: tiny, secret: sk-tiny-0123456789, tier: tiny}}
  - {{id: free, secret: {FREE}}}
  - {{id: few, secret: {FEW}, models: [other]}}
  - {{id: poor, secret: {POOR}, budget_usd: 0.00003}}
  - {{id: old, secret: {OLD}, expires: 2020-01-31}}
"""
PRICE = "    price: {input: 1, output: 1}\n"
OTHER = "  other: {targets: [{provider: a, model: up}]}\n"
QUESTION = [{"role": "user", "content": "hi"}]
SIX = {
    f"x-ratelimit-{what}-{resource}"
    for what in ("limit", "remaining", "reset")
    for resource in ("requests", "tokens")
}


def site(up):
    config = upstream_config(up.url, extra=PRICE + OTHER)
    return served_by(Router(parse(PORTS + KEYS + config, "test.yaml", {})))


def client(served, key):
    return openai.AsyncOpenAI(base_url=served.base_url, api_key=key, max_retries=0)


def limits_in(headers):
    return {name: value for name, value in headers.items() if name.startswith("x-ratelimit-")}


async def ask(sdk, **fields):
    return await sdk.chat.completions.with_raw_response.create(
        model="m", messages=QUESTION, **fields
    )


async def test_a_limited_key_hears_of_its_limits_and_an_unlimited_one_of_none():
    theirs = {"x-ratelimit-limit-requests": "9", "x-ratelimit-reset-tokens": "1s"}
    async with Upstream(default=json_answer(headers=theirs)) as up, site(up) as served:
        async with client(served, LIMITED) as sdk:
            answer = await ask(sdk, max_tokens=50)
            headers = limits_in(answer.headers)
            again = limits_in((await ask(sdk, max_tokens=50)).headers)
        async with client(served, FREE) as sdk:
            free = limits_in((await ask(sdk)).headers)
    assert set(headers) == SIX
    assert headers["x-ratelimit-limit-requests"] == "100"
    assert headers["x-ratelimit-remaining-requests"] == "99"
    assert headers["x-ratelimit-reset-requests"] == "14m24s"
    assert headers["x-ratelimit-limit-tokens"] == "40000"
    assert 39_900 <= int(headers["x-ratelimit-remaining-tokens"]) < 40_000
    assert headers["x-ratelimit-reset-tokens"].endswith("ms")
    assert again["x-ratelimit-remaining-requests"] == "98"
    assert 39_900 <= int(again["x-ratelimit-remaining-tokens"]) < 40_000, "13 used, 56 guessed"
    assert free == {}


async def test_a_hundred_at_once_against_sixty_a_minute_admit_sixty():
    async with Upstream() as up, site(up) as served:
        headers = {"Authorization": f"Bearer {LIMITED}"}
        async with aiohttp.ClientSession(
            headers=headers, connector=aiohttp.TCPConnector(limit=0)
        ) as session:

            async def one():
                body = {"model": "m", "messages": QUESTION}
                async with session.post(f"{served.base_url}/chat/completions", json=body) as got:
                    return got.status, got.headers, await got.json()

            answers = await asyncio.gather(*(one() for _ in range(100)))
    refused = [answer for answer in answers if answer[0] == 429]
    assert len(answers) - len(refused) == len(up.requests)
    assert 60 <= len(up.requests) <= 62, "exactly 60, and one for each second that it took"
    _, headers, body = refused[0]
    assert body["error"] == {
        "message": "Rate limit reached for m in organization limited on requests per min (RPM): Limit 60, Used 60, "
        f"Requested 1. Please try again in {body['error']['message'].split()[-1][:-1]}.",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert headers["retry-after"] == "1"
    assert 1 <= int(headers["retry-after-ms"]) <= 1000
    assert {name.lower() for name in headers if name.lower().startswith("x-rate")} == SIX


async def test_the_sdk_sees_a_rate_limit_error():
    async with Upstream() as up, site(up) as served, client(served, "sk-tiny-0123456789") as sdk:
        with pytest.raises(openai.RateLimitError) as large:
            await ask(sdk, max_tokens=30)
        await ask(sdk, max_tokens=10)
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(sdk, max_tokens=20)
    assert (large.value.type, large.value.code) == ("tokens", "rate_limit_exceeded")
    assert re.search("Request too large for m .*: Limit 40, Requested 4[89]", large.value.message)
    assert large.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in large.value.response.headers
    assert re.search(r"tokens per min \(TPM\): Limit 40, Used 1[0-3]", caught.value.message)
    assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_an_exhausted_budget_is_insufficient_quota():
    async with Upstream() as up, site(up) as served, client(served, POOR) as sdk:
        await ask(sdk, max_tokens=10)
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(sdk, max_tokens=10)
        page = await metrics(served)
    assert (caught.value.type, caught.value.code) == ("insufficient_quota", "insufficient_quota")
    assert "You exceeded your current quota" in caught.value.message
    assert [done.cost_usd for done in served.done] == [0.000013]
    assert 'nenya_cost_usd_total{model="m",provider="a"} 1.3e-05' in page
    refused = 'nenya_ratelimit_decisions_total{outcome="refused",resource="usd",scope="key"} 1.0'
    assert refused in page


async def metrics(served):
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{served.admin_url}/metrics") as page:
            return await page.text()


async def test_a_key_sees_and_gets_only_its_models():
    async with Upstream() as up, site(up) as served, client(served, FEW) as sdk:
        assert [model.id for model in (await sdk.models.list()).data] == ["other"]
        await sdk.chat.completions.create(model="other", messages=QUESTION)
        for wanted in (ask(sdk), sdk.models.retrieve("m")):
            with pytest.raises(openai.NotFoundError) as caught:
                await wanted
            assert caught.value.code == "model_not_found"
            assert "does not exist or you do not have access to it" in caught.value.message
    assert len(up.requests) == 1


async def test_an_expired_key_is_refused():
    async with Upstream() as up, site(up) as served, client(served, OLD) as sdk:
        with pytest.raises(openai.AuthenticationError) as caught:
            await ask(sdk)
    assert caught.value.code == "invalid_api_key"


async def test_a_request_that_failed_gives_its_tokens_back_and_still_tells_the_limits():
    async with Upstream(default=status(400)) as up, site(up) as served:
        async with client(served, LIMITED) as sdk:
            with pytest.raises(openai.BadRequestError) as caught:
                await ask(sdk, max_tokens=1000)
            up.default = json_answer()
            after = await ask(sdk, max_tokens=10)
    assert set(limits_in(caught.value.response.headers)) == SIX
    assert after.headers["x-ratelimit-remaining-requests"] == "98"
    assert int(after.headers["x-ratelimit-remaining-tokens"]) > 39_950


async def test_a_stream_that_is_left_pays_for_what_came():
    async with Upstream(default=stall(20)) as up, site(up) as served:
        async with client(served, LIMITED) as sdk:
            stream = await sdk.chat.completions.create(
                model="m", messages=QUESTION, stream=True, max_tokens=5000
            )
            got = 0
            async for chunk in stream:
                got += bool(chunk.choices[0].delta.content)
                if got == 20:
                    break
            await stream.close()
            await up.until_gone()
    (done,) = served.done
    assert (done.outcome, done.tokens_estimated) == ("client_gone", True)
    assert 15 <= done.output_tokens <= 25
    assert done.cost_usd == pytest.approx((done.input_tokens + done.output_tokens) / 1e6)
    assert served.router.accounts.budgets.reserved == 0
