"""GET /v1/models and GET /v1/models/{id}, with OpenAI's fields and those that routers add."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from router.server.exchange import Exchange

if TYPE_CHECKING:
    from router.app import Router


class Models:
    """Both routes."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def every(self, exchange: Exchange) -> None:
        """The list."""
        listed = {"object": "list", "data": self._router.models(exchange.key_id)}
        exchange.answer(200, msgspec.json.encode(listed))

    async def one(self, exchange: Exchange) -> None:
        """One model, by its name or an alias, in any case. Raises ApiError 404."""
        exchange.answer(
            200, msgspec.json.encode(self._router.model(exchange.head.rest, exchange.key_id))
        )
