"""Who may read the router's status, and who may use the playground beside it.

Without `server.admin_key` that is this machine: the connection comes from loopback, the Host header names loopback and
no proxy says that it speaks for somebody else. The Host is what DNS rebinding can't forge: a hostile page whose name
was made to lead here is of one origin with us to its browser, but still asks for its own name. With an admin key
whoever has it may look, from wherever.

The playground is the API's own handler, with a client's key where the API wants one: never a way around it.

Web pages of other origins get nothing in either case. Browsers say where a request comes from (Sec-Fetch-Site, and
Origin with every POST), and what they say no page can change.

Source: W3C, Fetch Metadata Request Headers; RFC 6454; OWASP, Cross-Site Request Forgery Prevention Cheat Sheet.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from aiohttp import hdrs

from router.errors import ApiError, ErrorObject, unauthorized
from router.server.exchange import Exchange
from router.server.floods import Floods
from router.server.hosts import is_loopback, name_of

_OWN = frozenset({"same-origin", "none"})
"""Of Sec-Fetch-Site: our own page, or somebody who typed the address."""
_PROXIED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via")

NOT_LOCAL = (
    "Without `server.admin_key` the router shows its status to this machine alone: the request came from another "
    "machine, through a proxy, or for another host name than 127.0.0.1, [::1] or localhost."
)
NO_ADMIN_KEY = "The status wants the admin key of the config (Authorization: Bearer ADMIN_KEY)."
WRONG_ADMIN_KEY = "Incorrect admin key provided."  # never quotes it


class Guard:
    """The admin port's rules for people. Raises ApiError: 401 or 403, and 429 to who guesses keys."""

    def __init__(self, admin_key: str | None, *, asks_for_keys: bool) -> None:
        """``asks_for_keys``: whether the API wants a client's key."""
        self._digest = None if admin_key is None else _digest(admin_key)
        self._opens_chat = admin_key is not None and asks_for_keys
        self._floods = Floods()

    def look(self, exchange: Exchange) -> None:
        """May this request read the status?"""
        headers = exchange.head.headers
        refuse_foreign(headers)
        if self._digest is None:
            _refuse_remote(exchange.connection.address, headers)
            return
        scheme, _, given = headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            raise unauthorized(NO_ADMIN_KEY)
        if not hmac.compare_digest(_digest(given.strip()), self._digest):
            flood = self._floods.note(exchange.connection.address, exchange.received_at)
            raise flood or unauthorized(WRONG_ADMIN_KEY)

    def chat(self, exchange: Exchange) -> None:
        """May this request, whose client's key was checked, be served here?"""
        headers = exchange.head.headers
        refuse_foreign(headers)
        if not self._opens_chat:
            _refuse_remote(exchange.connection.address, headers)


def refuse_foreign(headers: Mapping[str, str]) -> None:
    """Raises ApiError 403 for a request that a page of another origin made."""
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        foreign = site not in _OWN
    else:
        origin = headers.get(hdrs.ORIGIN)
        host = headers.get(hdrs.HOST, "")
        foreign = origin is not None and origin not in {f"http://{host}", f"https://{host}"}
    if foreign:
        message = "The admin port doesn't answer other sites' web pages."
        raise _forbidden(message, "origin_refused")


def _refuse_remote(address: str, headers: Mapping[str, str]) -> None:
    local = is_loopback(address) and is_loopback(name_of(headers.get(hdrs.HOST, "")))
    if not local or any(name in headers for name in _PROXIED):
        raise _forbidden(NOT_LOCAL, "not_local")


def _forbidden(message: str, code: str) -> ApiError:
    return ApiError(403, ErrorObject(message, "invalid_request_error", None, code))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
