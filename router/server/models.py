"""GET /v1/models and GET /v1/models/{id}, with OpenAI's fields and those that routers add."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from router.server.routes import Call

if TYPE_CHECKING:
    from router.app import Router


class Models:
    """Both routes."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def every(self, call: Call) -> None:
        """The list."""
        listed = {"object": "list", "data": self._router.models(call.key_id)}
        call.exchange.answer(200, msgspec.json.encode(listed))

    async def one(self, call: Call) -> None:
        """One model, by its name or an alias, in any case. Raises ApiError 404."""
        call.exchange.answer(200, msgspec.json.encode(self._router.model(call.rest, call.key_id)))
