"""POST /v1/chat/completions: from an exchange to a Reply and back.

The first piece commits the answer, so nothing is written before it. (A heartbeat for prompts that are long in
prefill belongs between ``open`` and ``begin``; it would commit the answer with a comment.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.errors import ApiError
from router.server.exchange import Exchange
from router.server.routes import Call
from router.wire.chat import decode_chat

if TYPE_CHECKING:
    from router.app import Router
    from router.dispatch import Reply


class Chat:
    """The route."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, call: Call) -> None:
        """Answer one request. Raises ApiError before the first byte; after it, the error is in the stream."""
        exchange = call.exchange
        body = await exchange.body()
        reply = await self._router.open(
            decode_chat(body),
            body,
            key_id=call.key_id,
            request_id=exchange.request_id,
            received_at=exchange.received_at,
        )
        try:
            exchange.served_by(reply.target, reply.attempts)
            exchange.note(reply.headers)
            if reply.streaming:
                await _stream(exchange, reply)
            else:
                exchange.answer(200, await _whole(reply))
        finally:
            reply.close()


async def _whole(reply: Reply) -> bytes:
    pieces = [await reply.read()]
    while piece := await reply.read():
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _stream(exchange: Exchange, reply: Reply) -> None:
    connection = exchange.connection
    exchange.begin(await reply.read())
    try:
        while blob := await reply.read():
            exchange.piece(blob)
            if connection.writing_paused:
                await connection.drain()
    except ApiError as error:
        exchange.refuse(error)
    else:
        exchange.end()
