"""Many at once, one that fails, one that leaves, one that dies: the walk over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.serving import SECRET, needs_starter, site, upstream_config
from tests.upstream import (
    Upstream,
    cut,
    hang_up,
    no_done,
    normal,
    reset,
    silent,
    stall,
    status,
    stream,
    waits,
)

HEADERS = {"Authorization": f"Bearer {SECRET}"}
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def client():
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=HEADERS, connector=connector) as session:
        yield session


def post(client, served, **fields):
    return client.post(f"{served.base_url}/chat/completions", json={**BODY, **fields})


async def whole_text(client, served, **fields):
    async with post(client, served, **fields) as answer:
        return answer.status, await answer.text()


def events_of(text):
    return [event.removeprefix("data: ") for event in text.split("\n\n") if event]


async def test_three_hundred_at_once_spread_within_five_percent(client):
    async with Upstream() as a, Upstream() as b, Upstream() as c:
        async with site(upstream_config(a.url, b.url, c.url)) as served:
            answers = await asyncio.gather(
                *(whole_text(client, served, stream=i % 2 == 0) for i in range(300))
            )
            assert served.router.inflight == 0
    assert {code for code, _ in answers} == {200}
    assert all(
        text.endswith("data: [DONE]\n\n") or json.loads(text)["choices"] for _, text in answers
    )
    counts = [len(up.requests) for up in (a, b, c)]
    assert all(95 <= count <= 105 for count in counts), counts


FAULTS = {
    "500": status(500),
    "503": status(503),
    "reset": reset(),
    "hang up": hang_up(),
    "401": status(401),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("streaming", [False, True])
async def test_one_failing_upstream_costs_no_client_an_error(client, fault, streaming):
    async with Upstream(default=FAULTS[fault]) as bad, Upstream() as good, Upstream() as fine:
        config = upstream_config(bad.url, good.url, fine.url)
        async with site(config) as served:
            answers = await asyncio.gather(
                *(whole_text(client, served, stream=streaming) for _ in range(30))
            )
            states = {one.target: one.state for one in served.router.stats().targets}
    assert {code for code, _ in answers} == {200}
    assert states["a/up"] == "ejected"
    assert {done.outcome for done in served.done} == {"ok"}


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_client_that_leaves_is_seen_upstream_within_100_ms(client, streaming):
    """The best of five: a busy machine may delay one, a timer in the way would delay all."""
    scripts = [stream(50, gate=asyncio.Semaphore(1)) if streaming else silent() for _ in range(5)]
    delays = []
    async with Upstream(*scripts) as up, site(upstream_config(up.url)) as served:
        for count in range(1, 6):
            if streaming:
                answer = await post(client, served, stream=True).__aenter__()
                await answer.content.readuntil(b"\n\n")
                leave = answer.close
            else:
                task = asyncio.create_task(whole_text(client, served))
                await up.until_requests(count)
                leave = task.cancel
            left = asyncio.get_running_loop().time()
            leave()
            delays.append(await up.until_gone(count) - left)
        assert served.router.inflight == 0
    assert min(delays) < 0.1
    assert [done.outcome for done in served.done] == ["client_gone"] * 5


@pytest.mark.parametrize("broken", [cut(2), cut(2, rst=True), no_done(2, finish=None)])
async def test_a_stream_that_breaks_ends_in_an_explicit_error(client, broken):
    async with Upstream(default=broken) as up, site(upstream_config(up.url)) as served:
        async with post(client, served, stream=True) as answer:
            text = b""
            with pytest.raises(aiohttp.ClientPayloadError):
                while piece := await answer.content.readany():
                    text += piece
    *_, last = events_of(text.decode())
    assert list(json.loads(last)["error"]) == ["message", "type", "param", "code"]
    assert json.loads(last)["error"]["code"] == "stream_cut"
    assert "[DONE]" not in text.decode()


async def test_a_stalled_stream_ends_in_an_explicit_error_though_heartbeats_come(client):
    limits = "timeouts: {idle_s: 0.2}\n"
    async with Upstream(default=stall(2, heartbeat_s=0.02)) as up:
        async with site(upstream_config(up.url, extra=limits)) as served:
            async with post(client, served, stream=True) as answer:
                text = b""
                with pytest.raises(aiohttp.ClientPayloadError):
                    while piece := await answer.content.readany():
                        text += piece
            await up.until_gone()
    assert json.loads(events_of(text.decode())[-1])["error"]["code"] == "stream_stalled"


async def test_a_missing_done_is_added_where_the_answer_is_whole(client):
    async with Upstream(default=no_done(2)) as up, site(upstream_config(up.url)) as served:
        code, text = await whole_text(client, served, stream=True)
    assert code == 200
    assert events_of(text)[-1] == "[DONE]"


async def test_usage_is_counted_though_the_client_did_not_ask(client):
    async with Upstream() as up, site(upstream_config(up.url)) as served:
        _, text = await whole_text(client, served, stream=True)
        async with client.get(f"{served.admin_url}/metrics") as page:
            metrics = await page.text()
    assert '"usage"' not in text
    assert [(done.input_tokens, done.output_tokens) for done in served.done] == [(10, 3)]
    assert 'nenya_tokens_total{model="m",provider="a",type="output"} 3.0' in metrics


async def test_a_whole_answer_may_take_longer_than_a_first_token(client):
    limits = "timeouts: {first_token_s: 0.02}\n"
    gate = asyncio.Event()
    asyncio.get_running_loop().call_later(0.2, gate.set)
    async with Upstream(waits(gate, normal())) as up:
        async with site(upstream_config(up.url, extra=limits)) as served:
            assert (await whole_text(client, served))[0] == 200


async def test_one_deadline_for_everything(client):
    limits = "timeouts: {total_s: 0.3, answer_s: 0.2}\n"
    async with Upstream(default=silent()) as a, Upstream(default=silent()) as b:
        async with site(upstream_config(a.url, b.url, extra=limits)) as served:
            start = asyncio.get_running_loop().time()
            code, text = await whole_text(client, served)
            took = asyncio.get_running_loop().time() - start
    assert code == 504
    assert json.loads(text)["error"]["code"] == "deadline_exceeded"
    assert took < 0.6


ENGINE = (
    "engines: {{s: {{kind: simulated, ttft_ms: 1, tokens_per_s: 50, answer_tokens: 500}}}}\n{0}"
)


def node_pid(served):
    return served.router._nodes["s"].pid


async def test_an_engine_killed_mid_stream_is_an_explicit_error_and_comes_back(client):
    config = ENGINE.format("models: {m: {targets: [{engine: s}]}}\n")
    async with site(config) as served:
        first_pid = node_pid(served)
        async with post(client, served, stream=True) as answer:
            await answer.content.readuntil(b"\n\n")
            os.kill(first_pid, signal.SIGKILL)
            text = b""
            with pytest.raises(aiohttp.ClientPayloadError):
                while piece := await answer.content.readany():
                    text += piece
        error = json.loads(events_of(text.decode())[-1])["error"]
        assert error["code"] == "engine_died"
        code, _ = await whole_text(client, served, max_tokens=1)
        assert code in {200, 503}
        async with asyncio.timeout(10):
            while (await whole_text(client, served, max_tokens=1))[0] != 200:
                await asyncio.sleep(0.05)
        assert node_pid(served) not in {first_pid, None}


async def test_an_engine_killed_before_the_first_byte_costs_nothing(client):
    async with Upstream(default=normal("elsewhere")) as up:
        config = (
            f"engines: {{s: {{kind: simulated, ttft_ms: 5000}}}}\nproviders: {{a: {{base_url: {up.url!r}}}}}\n"
            "models: {m: {policy: round_robin, targets: [{engine: s}, {provider: a}]}}\n"
        )
        async with site(config) as served:
            task = asyncio.create_task(whole_text(client, served))
            async with asyncio.timeout(5):
                while served.router.stats().targets[0].inflight == 0:
                    await asyncio.sleep(0.01)
            os.kill(node_pid(served), signal.SIGKILL)
            code, text = await task
    assert code == 200
    assert json.loads(text)["choices"][0]["message"]["content"] == "elsewhere"


async def test_a_client_that_leaves_frees_the_engine(client):
    config = ENGINE.format("models: {m: {targets: [{engine: s}]}}\n")
    async with site(config) as served:
        running = served.router._nodes["s"].engine
        answer = await post(client, served, stream=True).__aenter__()
        async with asyncio.timeout(5):
            while running.health().running != 1:
                await asyncio.sleep(0.01)
            answer.close()
            while running.health().running != 0:
                await asyncio.sleep(0.01)
        assert served.router.inflight == 0


@needs_starter
async def test_a_killed_engine_leaves_no_files_behind(client, monkeypatch):
    folder = Path(tempfile.mkdtemp(prefix="t"))  # pytest's own are too long for a socket's name
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    config = "engines: {s: {kind: llamacpp, model: starter, threads: 1}}\nmodels: {m: {targets: [{engine: s}]}}\n"
    async with site(config) as served:
        pid = node_pid(served)
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while node_pid(served) in {pid, None} or not served.router.ready():
                await asyncio.sleep(0.05)
        assert len(list(folder.glob("**/s"))) == 1
    folder.rmdir()
