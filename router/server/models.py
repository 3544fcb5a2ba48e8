"""GET /v1/models and GET /v1/models/{id}, with OpenAI's fields and those that routers add."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from router.server.routes import Call

if TYPE_CHECKING:
    from router.app import ModelCard, Router


class Models:
    """Both routes."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def every(self, call: Call) -> None:
        """The list."""
        data = [_shape(card) for card in self._router.models()]
        call.exchange.answer(200, msgspec.json.encode({"object": "list", "data": data}))

    async def one(self, call: Call) -> None:
        """One model, by its name or an alias, in any case. Raises ApiError 404."""
        call.exchange.answer(200, msgspec.json.encode(_shape(self._router.model(call.rest))))


def _shape(card: ModelCard) -> dict[str, object]:
    return {"object": "model", **msgspec.structs.asdict(card)}
