"""A router with everything that dashboards show: traffic, errors, limits, lines, retries, recoveries, hedges, crashes.

Everything happens in each round, so that what is counted rises between scrapes, too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from tests import upstream as up
from tests.e2e.serving import SECRET, Site, site

SMALL_SECRET = "sk-small-0123456789"
PROMPT = "Tell me something about the weather in the mountains, and take your time. " * 20
CONFIG = """
keys: [{{id: dev, secret: {secret}}}, {{id: small, secret: {small}, tier: small}}]
tiers: {{small: {{rpm: 1, priority: -1}}}}
engines:
  gpu:
    kind: simulated
    ttft_ms: 20
    tokens_per_s: 100
    prefill_tokens_per_s: 1000
    prefill_chunk_tokens: 64
    slots: 1
    faults: {{die: 0}}
providers:
  steady: {{base_url: {steady!r}, continues: true}}
  flaky: {{base_url: {flaky!r}}}
  limited: {{base_url: {limited!r}}}
  torn: {{base_url: {torn!r}}}
  broken: {{base_url: {broken!r}}}
  broken2: {{base_url: {broken!r}}}
models:
  m:
    price: {{input: 1, output: 2}}
    policy: round_robin
    targets: [{{provider: steady, model: up}}, {{provider: flaky, model: up}}]
  mixed:
    policy: local_first
    spill_s: 5
    targets: [{{engine: gpu, max_inflight: 1}}, {{provider: steady, model: up}}]
  local:
    targets: [{{engine: gpu, max_inflight: 1}}]
    queue: {{max: 2, max_wait_s: 5}}
  limited:
    targets: [{{provider: limited, model: up}}]
    fallback: [m]
  torn:
    policy: round_robin
    targets: [{{provider: torn, model: up}}, {{provider: steady, model: up}}]
  brittle:
    targets: [{{provider: broken, model: up}}, {{provider: broken2, model: up}}]
health: {{failures: 2, eject_s: 0.2, slow_start_s: 0}}
retry: {{hedge_share: 1, backoff_s: 0.01, budget_per_s: 0.1, fallback_wait_s: 0.05}}
"""
TOLD = {
    "x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": "60", "x-ratelimit-reset-requests": "20s",
}  # fmt: skip
USED_UP = {
    "x-ratelimit-limit-requests": "10", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s",
}  # fmt: skip
THOUGHT = {
    **up.USAGE, "completion_tokens_details": {"reasoning_tokens": 2},
}  # fmt: skip


def thoughtful() -> up.Script:
    """Streams that tell of limits and thoughts, and whole answers."""
    parts = [*up.events(5, done=False), up.event(up.chunk(None, usage=THOUGHT)), up.DONE]
    stream, whole = up.stream_of(parts, headers=TOLD), up.normal()

    async def answer(call: up.Call) -> None:
        await (stream if call.seen.streams else whole)(call)

    return answer


class Scene:
    """The router, its upstreams and a client."""

    def __init__(
        self, served: Site, session: aiohttp.ClientSession, upstreams: dict[str, up.Upstream]
    ) -> None:
        self.site = served
        self._session = session
        self._upstreams = upstreams

    async def round(self) -> None:
        """Everything, once."""
        await self._traffic()
        await self._breaks()
        await asyncio.gather(self._limits(), self._errors(), self._engine())

    async def crash(self) -> None:
        """The engine's process ends in the middle of an answer, and comes back."""
        await self.ask("local", content="[[fault:die]] now")
        async with asyncio.timeout(20):
            while not all(one.state == "ready" for one in self.site.router.stats().engines):
                await asyncio.sleep(0.02)

    async def ask(
        self, model: str, secret: str = SECRET, content: str = "hi", **fields: Any
    ) -> int:
        """One request to its end, whatever that is; its status."""
        messages = [{"role": "user", "content": content}]
        body = {"model": model, "messages": messages, "stream": True, **fields}
        headers = {"Authorization": f"Bearer {secret}"}
        url = f"{self.site.base_url}/chat/completions"
        with contextlib.suppress(aiohttp.ClientError):
            async with self._session.post(url, json=body, headers=headers) as answer:
                await answer.read()
                return answer.status
        return 0

    async def _traffic(self) -> None:
        """Enough streams for a target's usual first token to be known."""
        for _ in range(22):
            await asyncio.gather(self.ask("m"), self.ask("m"))
        await self.ask("m", stream=False)
        await self.ask("m", temperature=9)

    async def _breaks(self) -> None:
        """A stream that is late and hedged, a retry, and a stream that breaks and is mended."""
        flaky = self._upstreams["flaky"]
        flaky.script(up.waits(asyncio.Event()))
        await asyncio.gather(*(self.ask("m") for _ in range(2)))
        flaky.script(up.status(500))
        await asyncio.gather(*(self.ask("m", stream=False) for _ in range(2)))
        await asyncio.gather(*(self.ask("torn") for _ in range(2)))

    async def _limits(self) -> None:
        """A provider that refuses, is passed over and another model answers; and a key that is refused."""
        await self.ask("limited")
        await self.ask("limited")
        for _ in range(2):
            await self.ask("m", secret=SMALL_SECRET)

    async def _errors(self) -> None:
        """Two targets that always fail: retries, ejections, probes and a budget that is used up."""
        for _ in range(4):
            await self.ask("brittle")

    async def _engine(self) -> None:
        """One is answered, two wait, others are refused; a model with a provider, too, goes there."""
        first = asyncio.create_task(self.ask("mixed", content=PROMPT, max_tokens=20))
        while not self.site.router.pool.targets["gpu"].inflight:
            await asyncio.sleep(0.01)
        asking = [self.ask("local", content=PROMPT, max_tokens=20, n=2) for _ in range(4)]
        asking += [self.ask("mixed", content=PROMPT) for _ in range(3)]
        await asyncio.gather(first, *asking, self.ask("local", secret=SMALL_SECRET))


@contextlib.asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    """Everything up."""
    scripts = {
        "steady": thoughtful(), "flaky": up.normal(), "torn": up.cut(),
        "broken": up.status(500),
        "limited": up.status(429, up.error_body(code="rate_limit_exceeded"), headers=USED_UP),
    }  # fmt: skip
    async with contextlib.AsyncExitStack() as stack:
        upstreams = {
            name: await stack.enter_async_context(up.Upstream(default=script))
            for name, script in scripts.items()
        }
        urls = {name: one.url for name, one in upstreams.items()}
        config = CONFIG.format(**urls, secret=SECRET, small=SMALL_SECRET)
        served = await stack.enter_async_context(site(config, keys=""))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Scene(served, session, upstreams)
