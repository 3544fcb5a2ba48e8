"""A whole router on a real socket, in the test's own loop."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

import pytest

from engines.base import Engine
from engines.starter import gguf_path
from router.app import Router
from router.config.reader import parse
from router.events import Event, RequestDone
from router.metrics import Metrics
from router.server.serving import Serving

SECRET = "sk-test-0123456789"
KEYS = f"keys: [{{id: dev, secret: {SECRET}}}]\n"
PORTS = 'server: {listen: "127.0.0.1:0", admin: "127.0.0.1:0", drain_s: 5}\n'


needs_starter = pytest.mark.skipif(not gguf_path().exists(), reason="the starter model isn't built")


class Site:
    """A router that serves, and what it said."""

    def __init__(self, router: Router, serving: Serving, events: list[Event]) -> None:
        self.router = router
        self.serving = serving
        self.events = events
        self.url = serving.url
        self.admin_url = serving.admin_url

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def done(self) -> list[RequestDone]:
        return [event for event in self.events if isinstance(event, RequestDone)]


@contextlib.asynccontextmanager
async def site(
    config: str, engines: Mapping[str, Engine] | None = None, *, keys: str = KEYS
) -> AsyncIterator[Site]:
    """Serve ``config`` (YAML) with a key, on free ports; ``engines`` live in this process."""
    router = Router(parse(PORTS + keys + config, "test.yaml", {}), engines=engines)
    async with served_by(router) as served:
        yield served


@contextlib.asynccontextmanager
async def served_by(router: Router) -> AsyncIterator[Site]:
    """Serve ``router``."""
    metrics = Metrics(router.stats)
    events: list[Event] = []
    router.listen(metrics)
    router.listen(events.append)
    serving = Serving(router, metrics.scrape)
    await serving.start()
    metrics.loop_lag.start()
    try:
        async with router:
            yield Site(router, serving, events)
    finally:
        metrics.loop_lag.stop()
        await serving.stop(0)


def upstream_config(*urls: str, policy: str = "round_robin", extra: str = "") -> str:
    """A model ``m`` that all ``urls`` serve."""
    names = "abcdefgh"
    providers = "".join(
        f"  {name}: {{base_url: {url!r}}}\n" for name, url in zip(names, urls, strict=False)
    )
    targets = "".join(f"      - {{provider: {name}, model: up}}\n" for name in names[: len(urls)])
    return f"providers:\n{providers}models:\n  m:\n    policy: {policy}\n    targets:\n{targets}{extra}"
