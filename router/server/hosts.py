"""The names by which a router without keys may be asked for.

It listens on this machine alone, and still anybody's web page could use it: DNS rebinding has the page's own name lead
to 127.0.0.1, and to the browser the router is then of the page's origin. What such a page can't change is that name,
which stands in the Host header. So a name that anybody can register is refused unless the config lists it. With keys
there is nothing to refuse: the page has none.

Source: Ollama's server, which takes the same names (server/routes.go, allowedHost); RFC 6761, 6762 and ICANN's
``.internal`` for those that nobody can register.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
from collections.abc import Iterable

from router.errors import ApiError, ErrorObject

_OWN_ENDINGS = (".localhost", ".local", ".internal")

STRANGE_HOST = (
    "This router has no keys, so it answers only to names of its own machine, and the request's Host is another. "
    "List that name under `server.hosts`, or configure `keys`."
)


class Hosts:
    """The rule of one listener."""

    def __init__(self, listed: Iterable[str] = ()) -> None:
        """``listed``: names that are taken, too."""
        self._names = {"localhost", socket.gethostname().lower(), *(one.lower() for one in listed)}
        self._takes = functools.lru_cache(maxsize=64)(self._is_ours)

    def check(self, host: str | None) -> None:
        """Raises ApiError 403 for a Host header that names another machine; no browser sends a request without one."""
        if host is not None and not self._takes(host):
            error = ErrorObject(STRANGE_HOST, "invalid_request_error", None, "host_refused")
            raise ApiError(403, error)

    def _is_ours(self, host: str) -> bool:
        name = name_of(host).lower().removesuffix(".")
        return (
            "." not in name  # of this network, such as a container's
            or name in self._names
            or name.endswith(_OWN_ENDINGS)
            or _address(name)
            is not None  # a page at an address is that machine's, wherever its name leads
        )


def name_of(host: str) -> str:
    """A Host header's name, without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def is_loopback(name: str) -> bool:
    """Whether a name or an address is this machine's own."""
    if name.lower() == "localhost":
        return True
    found = _address(name)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return found is not None and (mapped or found).is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return None
