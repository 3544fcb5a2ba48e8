"""Which path is whose, as data.

A path is matched as it was sent, byte for byte: ``%2f``, ``..``, ``//`` and other letter case are other paths,
which nobody serves. Whether a key is asked for is the route's, never the path's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec

from router.errors import ApiError, invalid_request

if TYPE_CHECKING:
    from router.server.exchange import Exchange

MAX_ECHO = 200
"""Characters of a path that an error repeats."""


class Route(msgspec.Struct, frozen=True):
    """One method at one path."""

    method: str
    path: str
    serve: Callable[[Exchange], Awaitable[None]]
    needs_key: bool
    prefix: bool = False
    """The path goes on: ``Head.rest`` says how."""


class Routes:
    """A listener's table."""

    def __init__(self, table: Iterable[Route]) -> None:
        self.table = tuple(table)
        self.exact = {(r.method, r.path): r for r in self.table if not r.prefix}
        """Those whose path is all of it, by method and path."""
        self.exact |= {
            ("HEAD", path): r for (method, path), r in self.exact.items() if method == "GET"
        }
        self._prefixes = tuple(r for r in self.table if r.prefix)

    def match(self, method: str, path: str) -> tuple[Route, str]:
        """The route of what isn't `exact`, and the rest of the path. Raises ApiError: 404, or 405 with ``allow``."""
        for route in self._prefixes:
            if path.startswith(route.path) and len(path) > len(route.path):
                if method == route.method or (method, route.method) == ("HEAD", "GET"):
                    return route, unquote(path[len(route.path) :], errors="replace")
                raise _not_allowed(method, path, [route.method])
        allowed = [known for known, at in self.exact if at == path]
        if allowed:
            raise _not_allowed(method, path, allowed)
        raise invalid_request(f"Invalid URL ({method} {_echo(path)})", status=404)


def _not_allowed(method: str, path: str, allowed: list[str]) -> ApiError:
    message = (
        f"Not allowed to {method} on {_echo(path)}. "
        "(HINT: Perhaps you meant to use a different HTTP method?)"
    )
    if "GET" in allowed and "HEAD" not in allowed:
        allowed = [*allowed, "HEAD"]
    error = invalid_request(message, status=405)
    return ApiError(405, error.error, headers={"allow": ", ".join(sorted(allowed))})


def _echo(path: str) -> str:
    return path[:MAX_ECHO].encode("utf-8", "replace").decode("utf-8")
