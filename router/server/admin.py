"""The admin port: /metrics, /healthz, /readyz.

It is for probes and scrapers, never for web pages: a request with an Origin is refused, and no answer allows one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from aiohttp import hdrs

from router.errors import ApiError, ErrorObject
from router.server.routes import Call, Route, Routes

if TYPE_CHECKING:
    from router.app import Router

Render = Callable[[], tuple[str, bytes]]
Scrape = Callable[[str], Render]
"""From an Accept header to what renders the page. The first reads the router and runs on its loop; the second only
what the first took, in any thread."""

_TEXT = "text/plain; charset=utf-8"
_INDEX = b"Nenya\n\n/metrics  for Prometheus\n/healthz  the process lives\n/readyz   requests can be served\n"


class Admin:
    """The routes of the admin port."""

    def __init__(self, router: Router, scrape: Scrape) -> None:
        self._router = router
        self._scrape = scrape
        self.draining = False

    def routes(self) -> Routes:
        """The table."""
        return Routes(
            (
                Route("GET", "/", self.index, needs_key=False),
                Route("GET", "/metrics", self.metrics, needs_key=False),
                Route("GET", "/healthz", self.healthz, needs_key=False),
                Route("GET", "/readyz", self.readyz, needs_key=False),
            )
        )

    async def index(self, call: Call) -> None:
        """What is here."""
        refuse_pages(call)
        call.exchange.answer(200, _INDEX, _TEXT)

    async def metrics(self, call: Call) -> None:
        """Rendered in a thread: a page of a large router takes tens of milliseconds."""
        refuse_pages(call)
        accept = call.exchange.message.headers.get(hdrs.ACCEPT, "")
        render = self._scrape(accept)
        content_type, page = await asyncio.get_running_loop().run_in_executor(None, render)
        call.exchange.answer(200, page, content_type)

    async def healthz(self, call: Call) -> None:
        """200 while the process lives, draining or not: restarting it would help nobody."""
        refuse_pages(call)
        call.exchange.answer(200, b'{"status":"ok"}')

    async def readyz(self, call: Call) -> None:
        """200 while requests can be served."""
        refuse_pages(call)
        if self.draining:
            reason = "draining"
        elif not self._router.ready():
            reason = "no model can be served"
        else:
            call.exchange.answer(200, b'{"status":"ready"}')
            return
        call.exchange.answer(503, msgspec.json.encode({"status": "not ready", "reason": reason}))


def refuse_pages(call: Call) -> None:
    """Raises ApiError 403 for a browser's cross-origin request."""
    if hdrs.ORIGIN in call.exchange.message.headers:
        message = "The admin port doesn't answer web pages."
        raise ApiError(403, ErrorObject(message, "invalid_request_error", None, "origin_refused"))
