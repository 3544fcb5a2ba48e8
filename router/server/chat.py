"""The routes that a model answers: chat completions, completions, embeddings. From an exchange to a Reply and back.

The first piece of an answer commits it, so nothing is written before it, but for one case: a stream whose first
piece lets itself be waited for. Proxies and clients cut a silent connection after a minute or less, so from
KEEP_ALIVE_S on it gets comments, which every reader of event streams passes over. They commit the status (200) and
nothing else: attempts may go on failing and being made elsewhere, and if none ends well the error is an event of the
stream, as any error after the first byte is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from router.errors import ApiError
from router.server.exchange import Exchange
from router.tracing import Arrival
from router.wire.operation import Operation
from router.wire.request import Request

if TYPE_CHECKING:
    from router.app import Router
    from router.dispatch import Reply

Decode = Callable[[bytes, Collection[str]], Request]


class Ask:
    """One such route."""

    def __init__(self, router: Router, operation: Operation, decode: Decode) -> None:
        """``decode`` makes the operation's request of a body, letting through the fields named."""
        self._router = router
        self._operation = operation
        self._decode = decode

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request. Raises ApiError before the first byte; after it, the error is in the stream."""
        try:
            body = exchange.body_in_hand()
            if body is None:
                body = await exchange.body()
            request = self._decode(body, self._router.extra_fields)
        except ApiError as error:
            self._trace_refusal(exchange, error)
            raise
        connection = exchange.connection
        waited_for = connection.gate.waited_for
        if request.stream:
            waited_for.begin(connection)
        try:
            reply = await self._router.send(
                self._router.admit(
                    request,
                    body,
                    key_id=exchange.key_id,
                    request_id=exchange.request_id,
                    received_at=exchange.received_at,
                    headers=exchange.head.headers,
                )
            )
        finally:
            if request.stream:
                waited_for.end(connection)
        try:
            overhead_s = reply.overhead_s or 0.0
            exchange.served_by(reply.target, reply.attempts, overhead_s, reply.limits)
            if reply.upstream_headers:
                exchange.note(reply.upstream_headers)
            if reply.streaming:
                await _stream(exchange, reply)
            else:
                exchange.answer(200, reply.whole())
        finally:
            if connection.held and exchange.started:
                connection.gate.ending.later(reply.close)  # behind the answer
            else:
                reply.close()

    def _trace_refusal(self, exchange: Exchange, error: ApiError) -> None:
        """What can't be read is never opened, and has a span all the same."""
        tracing = self._router.tracing
        if tracing is not None:
            came = exchange.request_id, exchange.key_id, exchange.received_at, exchange.head.headers
            tracing.begin(Arrival(self._operation, None, *came)).refuse(error)


async def _stream(exchange: Exchange, reply: Reply) -> None:
    connection = exchange.connection
    try:
        while blob := await reply.read():
            exchange.stream(blob)
            if connection.writing_paused:
                await connection.drain()
            if not exchange.streaming:
                return  # its end has gone out
            await reply.pour(exchange.offer)
            if connection.writing_paused:
                await connection.drain()
    except ApiError as error:
        exchange.refuse(error)
    else:
        exchange.end()
