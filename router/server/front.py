"""Match, authenticate, serve; and the last resort.

The order is fixed: the head is screened, the route is matched, the route says whether a key is needed, the key is
checked, and only then a byte of the body is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import secrets
import traceback
from collections.abc import Callable

from aiohttp import hdrs
from multidict import istr

from router.errors import ApiError, ErrorObject, shutting_down
from router.server.exchange import ClientGone, Exchange
from router.server.floods import Floods
from router.server.hosts import Hosts
from router.server.routes import Call, Route, Routes
from router.server.screening import screen, screen_type

_log = logging.getLogger(__name__)

Authenticate = Callable[[str | None], str]
_REQUEST_ID_HEADER = istr("X-Request-Id")  # looked up without being folded to lower case anew
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""What a client may call its request: safe in headers and logs."""


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
        self._prefix = secrets.token_hex(6)
        self._count = itertools.count(1)

    async def __call__(self, exchange: Exchange) -> None:
        """Answer. Raises only CancelledError and ClientGone."""
        asked = exchange.message.headers.get(_REQUEST_ID_HEADER)
        exchange.request_id = (
            asked
            if asked is not None and _REQUEST_ID.fullmatch(asked)
            else f"req_{self._prefix}{next(self._count):08x}"
        )
        try:
            route, call = self._admit(exchange)
            await route.serve(call)
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

    def _admit(self, exchange: Exchange) -> tuple[Route, Call]:
        """Who serves it. Raises ApiError."""
        message = exchange.message
        exchange.last = True  # what is refused here and what is read after it may not fit
        screen(message)
        if self._hosts is not None:
            self._hosts.check(message.headers.get(hdrs.HOST))
        exchange.last = False
        method, headers, path = message.method, message.headers, message.path.partition("?")[0]
        rest, key_id = "", ""
        route = self.routes.exact.get((method, path))
        if route is None:
            route, rest = self.routes.match(method, path)
        if route.needs_key:
            try:
                key_id = self._authenticate(headers.get(hdrs.AUTHORIZATION))
            except ApiError:
                self._note_bad_key(exchange)
                raise
        if hdrs.ORIGIN in headers and method == hdrs.METH_POST:
            screen_type(headers)
        return route, Call(exchange, key_id, rest)

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
