"""``host:port``, as ``listen`` and ``admin`` write it, and whether it can be reached from beyond this machine.

A name other than ``localhost`` counts as reachable: what it resolves to may change after the config was checked.
"""

from __future__ import annotations

import ipaddress
import re

from msgspec import Struct

_SHAPE = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})"
)
_MOST = 65535


class Address(Struct, frozen=True):
    """Where a server listens. Port 0 lets the system choose one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Only this machine can connect."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def split(text: str) -> Address | None:
    """The address in ``text``: ``127.0.0.1:8080``, ``localhost:0``, ``[::1]:8080``; None if it isn't one."""
    found = _SHAPE.fullmatch(text)
    if found is None or int(found["port"]) > _MOST:
        return None
    host = found["v6"] or found["host"]
    if found["v6"] is not None and not _is_ip(host):
        return None
    return Address(host, int(found["port"]))


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
