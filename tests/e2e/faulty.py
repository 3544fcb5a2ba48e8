"""A whole router in front of upstreams that go wrong, with clients that are judged and books that must balance."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from router.app import Router
from router.config.reader import parse
from router.events import AttemptDone, RequestDone
from tests import upstream as up
from tests.e2e.judging import Got, Wire
from tests.e2e.serving import PORTS, Site, served_by

SECRET = "sk-faults-0123456789"
KEYS = f"""
tiers: {{wide: {{rpm: 1000000, tpm: 1000000000}}}}
keys: [{{id: dev, secret: {SECRET}, tier: wide, budget_usd: 1000}}]
"""
"""Limited and budgeted, so that every request has a charge to settle."""

WORDS = up.words(4)
TEXT = "".join(WORDS)
"""What every speaker of these tests means to say."""
QUESTION = {"role": "user", "content": "hi"}
NAMES = "abcd"


def prefix_of(seen: up.Seen) -> str | None:
    """The beginning that a request asks to be continued."""
    last = seen.json["messages"][-1]
    return last["content"] if last["role"] == "assistant" else None


def speaks(words: list[str] | None = None, *, finish: str = "stop", **how: Any) -> up.Script:
    """The whole of ``words``, or what is left of them after a given beginning; ``how`` is `stream_of`'s."""
    text = "".join(WORDS if words is None else words)

    async def answer(call: up.Call) -> None:
        prefix = prefix_of(call.seen) or ""
        assert text.startswith(prefix), prefix
        rest = text[len(prefix) :]
        if not call.seen.streams:
            await call.write(up.http(200, up.completion(rest, finish=finish)))
            return
        options = call.seen.json.get("stream_options") or {}
        usage = "chunk" if options.get("include_usage") else None
        parts = re.findall(r"\s*\S+\s*", rest)
        await up.stream_of(up.events(texts=parts, finish=finish, usage=usage), **how)(call)

    return answer


def by_prefix(fresh: up.Script, continued: up.Script) -> up.Script:
    """One answer to requests of their own, another to such that want a beginning continued."""

    async def answer(call: up.Call) -> None:
        await (fresh if prefix_of(call.seen) is None else continued)(call)

    return answer


async def until(holds: Callable[[], object], within_s: float = 5.0) -> None:
    """Return when ``holds`` does. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.002)


class World:
    """Upstreams a, b, c... that all serve the model ``m``, and the router before them."""

    def __init__(self, upstreams: list[up.Upstream], served: Site) -> None:
        self.served = served
        self.upstreams = upstreams
        self.asked = 0

    @property
    def a(self) -> up.Upstream:
        return self.upstreams[0]

    @property
    def b(self) -> up.Upstream:
        return self.upstreams[1]

    @property
    def c(self) -> up.Upstream:
        return self.upstreams[2]

    @property
    def done(self) -> list[RequestDone]:
        return self.served.done

    def state(self, name: str) -> str:
        """A target's health."""
        return self.served.router.pool.targets[f"{name}/up"].state

    async def ask(self, streaming: bool = False, **fields: Any) -> Got:
        """One client's exchange, judged: a whole answer or an explicit error."""
        self.asked += 1
        body = {"model": "m", "messages": [QUESTION], "stream": streaming, **fields}
        async with Wire(self.served.url, SECRET) as wire:
            got = await wire.ask(body)
        got.is_whole()
        return got

    async def asks(self, count: int, streaming: bool = False, **fields: Any) -> list[Got]:
        """One after the other."""
        return [await self.ask(streaming, **fields) for _ in range(count)]

    @property
    def connections(self) -> int:
        """Of providers, in use."""
        return sum(backend.in_use for backend in self.served.router._backends.values())

    async def assert_balanced(self) -> None:
        """Nothing is under way, and everything was settled and told exactly once."""
        router = self.served.router
        await until(lambda: not router.inflight and not self.connections)
        assert all(one.inflight == 0 for one in router.stats().targets)
        assert router.accounts.budgets.reserved == 0
        attempts = [event for event in self.served.events if isinstance(event, AttemptDone)]
        assert len(attempts) == sum(done.attempts for done in self.done)
        assert len(self.done) == self.asked
        assert set(Counter(done.request_id for done in self.done).values()) <= {1}


def config_of(
    *urls: str, provider: str = "", model: str = "", served: int | None = None, extra: str = ""
) -> str:
    """The model ``m``, asked for at the first ``served`` of ``urls`` in turn, or at all.

    ``provider`` and ``model`` are more of their fields.
    """
    names = NAMES[: len(urls)]
    providers = "".join(
        f"  {name}: {{base_url: {url!r}{', ' if provider else ''}{provider}}}\n"
        for name, url in zip(names, urls, strict=True)
    )
    targets = ", ".join(f"{{provider: {name}, model: up}}" for name in names[:served])
    return (
        f"providers:\n{providers}models:\n"
        f"  m: {{policy: round_robin, price: {{input: 1, output: 1}}, targets: [{targets}]"
        f"{', ' if model else ''}{model}}}\n{extra}"
    )


RULES = """
timeouts: {total_s: 10, first_token_s: 5, answer_s: 5, idle_s: 5}
retry: {backoff_s: 0.01}
health: {failures: 2, eject_s: 60}
"""
"""Two failures eject, for longer than any test lasts."""


@contextlib.asynccontextmanager
async def world(
    *scripts: up.Script, rules: str = RULES, more: str = "", **how: Any
) -> AsyncIterator[World]:
    """Upstreams with these answers, and a router; at the end the books are checked.

    ``more``: models, in YAML; ``how`` is `config_of`'s.
    """
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(up.Upstream(default=one)) for one in scripts]
        urls = [one.url for one in upstreams]
        config = config_of(*urls, extra=more + rules, **how)
        router = Router(parse(PORTS + KEYS + config, "test.yaml", {}))
        served = await stack.enter_async_context(served_by(router))
        made = World(upstreams, served)
        yield made
        await made.assert_balanced()
