"""The admin port: for machines /metrics, /healthz and /readyz, for people a page with the status and a playground.

    /                         the page: static files of the package, nothing of the router in them
    /status                   what the page shows, as JSON: router.status
    /v1/chat/completions      the API's own handler, keys, limits and all: the page asks as any client would

What machines read is refused to web pages of any origin, and no answer allows one. What the page reads has a guard of
its own: `router.server.guard`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from aiohttp import hdrs

from router.errors import ApiError, ErrorObject, shutting_down
from router.server.chat import Ask
from router.server.exchange import Exchange
from router.server.guard import Guard
from router.server.page import page_routes
from router.server.routes import Route, Routes
from router.status import Health, Overview
from router.wire.chat import decode_chat
from router.wire.operation import Operation

if TYPE_CHECKING:
    from router.app import Router

Render = Callable[[], tuple[str, bytes]]
Scrape = Callable[[str], Render]
"""From an Accept header to what renders the page. The first reads the router and runs on its loop; the second only
what the first took, in any thread."""

_NOT_KEPT = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class Admin:
    """The routes of the admin port."""

    def __init__(self, router: Router, scrape: Scrape) -> None:
        self._router = router
        self._scrape = scrape
        self._overview = Overview(router)
        self._ask = Ask(router, Operation.CHAT, decode_chat)
        config = router.config
        self._guard = Guard(config.server.admin_key, asks_for_keys=config.asks_for_keys)
        self.draining = False

    def routes(self) -> Routes:
        """The table."""
        return Routes(
            (
                *page_routes(),
                Route("GET", "/status", self.status, needs_key=False),
                Route("POST", "/v1/chat/completions", self.chat, needs_key=True),
                Route("GET", "/metrics", self.metrics, needs_key=False),
                Route("GET", "/healthz", self.healthz, needs_key=False),
                Route("GET", "/readyz", self.readyz, needs_key=False),
            )
        )

    async def status(self, exchange: Exchange) -> None:
        """The router's state, for the page and whoever else may look. Raises ApiError 401 or 403."""
        self._guard.look(exchange)
        exchange.note(_NOT_KEPT)
        exchange.answer(200, self._overview.document(self._health()))

    async def chat(self, exchange: Exchange) -> None:
        """A chat completion, as the API answers it. Raises ApiError, 403 where the guard says so."""
        self._guard.chat(exchange)
        if self.draining:
            raise shutting_down()
        await self._ask(exchange)

    async def metrics(self, exchange: Exchange) -> None:
        """Rendered in a thread: a page of a large router takes tens of milliseconds."""
        refuse_pages(exchange)
        accept = exchange.head.headers.get(hdrs.ACCEPT, "")
        render = self._scrape(accept)
        content_type, page = await asyncio.get_running_loop().run_in_executor(None, render)
        exchange.answer(200, page, content_type)

    async def healthz(self, exchange: Exchange) -> None:
        """200 while the process lives, draining or not: restarting it would help nobody."""
        refuse_pages(exchange)
        exchange.answer(200, b'{"status":"ok"}')

    async def readyz(self, exchange: Exchange) -> None:
        """200 while requests can be served."""
        refuse_pages(exchange)
        health = self._health()
        if health == "ready":
            exchange.answer(200, b'{"status":"ready"}')
            return
        reason = "draining" if health == "draining" else "no model can be served"
        exchange.answer(503, msgspec.json.encode({"status": "not ready", "reason": reason}))

    def _health(self) -> Health:
        if self.draining:
            return "draining"
        return "ready" if self._router.ready() else "not ready"


def refuse_pages(exchange: Exchange) -> None:
    """Raises ApiError 403 for a browser's cross-origin request."""
    if hdrs.ORIGIN in exchange.head.headers:
        message = "The admin port doesn't answer web pages."
        raise ApiError(403, ErrorObject(message, "invalid_request_error", None, "origin_refused"))
