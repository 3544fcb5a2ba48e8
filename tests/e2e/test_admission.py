"""The line over real sockets: bounded, in order, left at once, and told when the server goes."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from tests.e2e.serving import SECRET, site
from tests.upstream import Upstream, normal, waits

HEADERS = {"Authorization": f"Bearer {SECRET}"}
CONFIG = """
providers: {{p: {{base_url: {url!r}}}}}
models: {{m: {{targets: [{{provider: p, max_inflight: 2}}]}}}}
queue: {{max: 3}}
"""


@pytest.fixture
async def client():
    async with aiohttp.ClientSession(headers=HEADERS) as session:
        yield session


async def ask(client, served, name):
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "user": name}
    async with client.post(f"{served.base_url}/chat/completions", json=body) as answer:
        return answer.status, answer.headers, await answer.text()


async def depth(client, served):
    async with client.get(f"{served.admin_url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    prefix = 'nenya_queue_depth{model="m",priority="0"} '
    return next((float(line.removeprefix(prefix)) for line in lines if prefix in line), 0.0)


def waiting(served):
    return sum(line.waiting for line in served.router.stats().lines)


async def come(client, served, name, until):
    """A client's request, once ``until`` holds."""
    task = asyncio.create_task(ask(client, served, name))
    async with asyncio.timeout(10):
        while not until():
            await asyncio.sleep(0.005)
    return task


async def test_two_are_served_three_wait_and_the_sixth_is_refused(client):
    gate = asyncio.Event()
    async with Upstream(default=waits(gate, normal())) as up, site(CONFIG.format(url=up.url)) as at:
        tasks = []
        for number in range(5):
            inflight, queued = min(number + 1, 2), max(0, number - 1)
            tasks.append(
                await come(
                    client,
                    at,
                    str(number),
                    lambda inflight=inflight, queued=queued: (
                        (at.router.inflight, waiting(at)) == (inflight, queued)
                    ),
                )
            )
        assert await depth(client, at) == 3
        status, headers, text = await ask(client, at, "too many")
        assert (status, json.loads(text)["error"]["code"]) == (503, "overloaded")
        assert int(headers["retry-after"]) >= 1
        tasks[3].cancel()
        async with asyncio.timeout(10):
            while waiting(at) != 2:
                await asyncio.sleep(0.005)
        gate.set()
        left = [task for task in tasks if task is not tasks[3]]
        assert [status for status, _, _ in await asyncio.gather(*left)] == [200] * 4
        assert [seen.json["user"] for seen in up.requests][2:] == ["2", "4"]
        assert at.router.inflight == 0
        outcomes = sorted(done.outcome for done in at.done)
        assert outcomes == ["client_gone", "ok", "ok", "ok", "ok", "overloaded"]
        assert await depth(client, at) == 0


async def test_who_waits_when_the_server_stops_hears_so_and_who_runs_is_answered(client):
    gate = asyncio.Event()
    async with Upstream(default=waits(gate, normal())) as up, site(CONFIG.format(url=up.url)) as at:
        running = [
            await come(client, at, str(n), lambda n=n: at.router.inflight == n) for n in (1, 2)
        ]
        queued = await come(client, at, "3", lambda: waiting(at) == 1)
        stopping = asyncio.create_task(at.serving.stop(10))
        status, _, text = await queued
        assert (status, json.loads(text)["error"]["code"]) == (503, "shutting_down")
        gate.set()
        assert [(await task)[0] for task in running] == [200, 200]
        await stopping
