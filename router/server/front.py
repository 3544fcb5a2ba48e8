"""Match, authenticate, serve; and the last resort.

The order is fixed: the head is screened, the route is matched, the route says whether a key is needed, the key is
checked, and only then a byte of the body is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import traceback
from collections.abc import Callable, Iterator

from aiohttp import hdrs

from router.errors import ApiError, ErrorObject, shutting_down
from router.server.exchange import ClientGone, Exchange
from router.server.floods import Floods
from router.server.hosts import Hosts
from router.server.routes import Route, Routes
from router.server.screening import screen, screen_type

_log = logging.getLogger(__name__)

Authenticate = Callable[[str | None], str]


class Front:
    """What a listener does with an exchange."""

    def __init__(
        self, routes: Routes, authenticate: Authenticate, hosts: Hosts | None = None
    ) -> None:
        """``authenticate`` turns an Authorization header into a key's id, or raises ApiError 401. ``hosts``: the names
        that may be asked for; None for any.
        """
        self.routes = routes
        self._authenticate = authenticate
        self._hosts = hosts
        self._floods = Floods()
        self._names = _names(f"req_{secrets.token_hex(6)}")

    async def __call__(self, exchange: Exchange) -> None:
        """Answer. Raises only CancelledError and ClientGone."""
        exchange.request_id = exchange.head.request_id or next(self._names)
        try:
            route = self._admit(exchange)
            await route.serve(exchange)
        except ApiError as error:
            exchange.refuse(error)
        except asyncio.CancelledError:
            if exchange.stopped:
                with contextlib.suppress(ClientGone):
                    exchange.refuse(shutting_down())
            raise
        except ClientGone:
            raise
        except Exception as error:  # noqa: BLE001 - the last resort: a bug of ours must not cost the client its answer
            _report(error, exchange)
            exchange.refuse(internal())

    def _admit(self, exchange: Exchange) -> Route:
        """Who serves it. Raises ApiError."""
        head = exchange.head
        known = head.route
        route, rest = (known, head.rest) if known is not None else self._match(exchange)
        if route.needs_key:
            try:
                exchange.key_id = self._authenticate(head.authorization)
            except ApiError:
                self._note_bad_key(exchange)
                raise
        if known is None:
            if head.method == hdrs.METH_POST:
                screen_type(head.headers)
            head.route, head.rest = route, rest
        return route

    def _match(self, exchange: Exchange) -> tuple[Route, str]:
        """The route of a head that is fit for one. Raises ApiError."""
        head = exchange.head
        exchange.last = True  # what is refused here and what is read after it may not fit
        screen(head)
        if self._hosts is not None:
            self._hosts.check(head.headers.get(hdrs.HOST))
        exchange.last = False
        method, path = head.method, head.target.partition("?")[0]
        route = self.routes.exact.get((method, path))
        return (route, "") if route is not None else self.routes.match(method, path)

    def _note_bad_key(self, exchange: Exchange) -> None:
        """Raises ApiError 429 where its address sends too many."""
        flood = self._floods.note(exchange.connection.address, exchange.received_at)
        if flood is not None:
            exchange.last = True
            raise flood from None


def internal() -> ApiError:
    """500, saying nothing of what happened."""
    message = "The server had an error while processing your request."
    return ApiError(500, ErrorObject(message, "server_error", None, "internal_error"))


def _report(error: Exception, exchange: Exchange) -> None:
    """Log where it happened and of what kind it was; its words may hold a prompt or a key, so they stay out."""
    where = "".join(traceback.format_tb(error.__traceback__))
    _log.error("request %s: %s\n%s", exchange.request_id, type(error).__qualname__, where)


_ENDS = tuple(f"{n:03x}" for n in range(4096))


def _names(start: str) -> Iterator[str]:
    """Names for requests: ``start`` and a number of eight hexadecimal digits, the last three of them made before."""
    for count in itertools.count():
        block = f"{start}{count:05x}"
        for end in _ENDS:
            yield block + end
