"""Where a provider lives, whether we may go there, and how a connection to it comes about.

The name is resolved here, every address is checked, and only checked addresses are connected to: resolving once to
check and again to connect would let a name answer differently the second time. Addresses of both families race
with a head start for the first. No proxy is read from the environment.

Source: RFC 8305 (happy eyeballs), RFC 4291 section 2.5.5.2 and RFC 6052 (IPv4 inside IPv6), RFC 3927 (link-local).
"""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from itertools import zip_longest
from urllib.parse import urlsplit

import msgspec

from router.backends.http.connection import Connection
from router.errors import ConfigError, Fault, FaultKind, Problem

HEAD_START_S = 0.25
"""RFC 8305's connection attempt delay."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in ("fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
)
"""Clouds' metadata services that aren't link-local: AWS over IPv6, Alibaba, Oracle, Azure."""

_OUR_NETWORK = frozenset({
    errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.ENETUNREACH,
    errno.ENETDOWN,
})  # fmt: skip
_OUR_RESOLVER = frozenset({
    socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_MEMORY, socket.EAI_SYSTEM,
})  # fmt: skip

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")


class Origin(msgspec.Struct, frozen=True):
    """Scheme, host and port of a provider, and the path its API stands under."""

    host: str
    port: int
    tls: bool
    path: str

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def origin_of(base_url: str) -> Origin:
    """The parts of ``base_url``. Raises ValueError."""
    parts = urlsplit(base_url)
    if not base_url.isascii() or not base_url.isprintable() or " " in base_url:
        raise ValueError("base_url holds a character that a URL can't")
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise ValueError("base_url is no http or https URL of a host")
    tls = parts.scheme == "https"
    port = parts.port if parts.port is not None else (443 if tls else 80)
    return Origin(parts.hostname, port, tls, parts.path.rstrip("/"))


def literal(host: str) -> Address | None:
    """The address that ``host`` is, if it is written out."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def embedded(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one that stands for it; else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour
    if inner is not None:
        return inner
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def allowed(address: Address, *, private: bool) -> bool:
    """Whether a provider may be there: never at link-local, multicast or metadata addresses, and at loopback,
    private or reserved ones only where ``private`` says so.
    """
    inner = embedded(address)
    if any(one.is_link_local or one.is_multicast or one in _METADATA for one in (address, inner)):
        return False
    return private or (inner.is_global and not inner.is_unspecified)


def trust(ca_file: str | None) -> ssl.SSLContext:
    """Certificates verified against the system's authorities and those in ``ca_file``. Raises ConfigError."""
    if ca_file is None:
        return _system_trust()
    context = _context()
    try:
        context.load_verify_locations(cafile=ca_file)
    except OSError as error:
        problem = Problem(f"no authority can be read from it: {error}", "ca_file")
        raise ConfigError(ca_file, [problem]) from error
    return context


@functools.cache
def _system_trust() -> ssl.SSLContext:
    # Reading the system's authorities takes up to a quarter of a second; once for all providers is enough.
    return _context()


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class Dialer:
    """Opens connections to one origin."""

    def __init__(
        self, origin: Origin, *, private_network: bool = False, ca_file: str | None = None
    ) -> None:
        """``private_network``: the name may lead to loopback and private addresses. Raises ConfigError."""
        self._origin = origin
        self._literal = literal(origin.host)
        self._private = private_network or self._literal is not None or origin.host == "localhost"
        self._tls = trust(ca_file) if origin.tls else None
        written = [] if self._literal is None else [self._literal]
        self._written = self._permitted(written)
        """The address, where it is written out and may be connected to."""

    async def dial(self, make: Callable[[], Connection]) -> Connection:
        """A connection made by ``make``, connected and with TLS verified. Raises Fault.

        Cancelling it leaves nothing behind.
        """
        addresses = self._written or await self._addresses()
        try:
            return await first(addresses, lambda address: self._connect(make(), address))
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", None) or error.reason or "handshake failed"
            raise Fault(FaultKind.CONNECT, f"TLS with the provider: {reason}") from error
        except OSError as error:
            if is_ours(error):
                message = f"the router could not connect to anybody: {error.strerror}"
                raise Fault(FaultKind.LOCAL, message) from error
            reason = (
                error.strerror if error.strerror and len(addresses) == 1 else "no address answers"
            )
            raise Fault(FaultKind.CONNECT, f"no connection to the provider: {reason}") from error

    async def _addresses(self) -> list[Address]:
        permitted = self._permitted([] if self._literal is not None else await self._resolve())
        if not permitted:
            raise Fault(
                FaultKind.CONNECT,
                "the provider's address is one that the router must not connect to",
            )
        return permitted

    def _permitted(self, found: Sequence[Address]) -> list[Address]:
        return [address for address in found if allowed(address, private=self._private)]

    async def _resolve(self) -> list[Address]:
        loop = asyncio.get_running_loop()
        try:
            rows = await loop.getaddrinfo(
                self._origin.host, self._origin.port, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:
            if is_ours(error):
                raise Fault(FaultKind.LOCAL, "the router can't resolve names now") from error
            raise Fault(FaultKind.CONNECT, "the provider's name does not resolve") from error
        addresses = dict.fromkeys(ipaddress.ip_address(row[4][0]) for row in rows)
        return interleave(list(addresses))

    async def _connect(self, connection: Connection, address: Address) -> Connection:
        loop = asyncio.get_running_loop()
        name = self._origin.host if self._tls is not None else None
        try:
            await loop.create_connection(
                lambda: connection,
                str(address),
                self._origin.port,
                ssl=self._tls,
                server_hostname=name,
            )
        except BaseException:
            connection.abort()
            raise
        return connection


def is_ours(error: BaseException) -> bool:
    """Whether ``error`` says something about this machine and nothing about the provider: its descriptors, ports,
    memory or routes, or a resolver that doesn't answer. That a name doesn't exist is an answer.
    """
    if isinstance(error, socket.gaierror):
        return error.errno in _OUR_RESOLVER
    return isinstance(error, OSError) and error.errno in _OUR_NETWORK


def interleave(addresses: Sequence[Address]) -> list[Address]:
    """Families in turn, beginning with the first address's; the order within a family stays."""
    if not addresses:
        return []
    version = addresses[0].version
    own = [address for address in addresses if address.version == version]
    other = [address for address in addresses if address.version != version]
    return [one for pair in zip_longest(own, other) for one in pair if one is not None]


async def first(
    addresses: Sequence[Address], attempt: Callable[[Address], Coroutine[None, None, Connection]]
) -> Connection:
    """The first connection to stand; each attempt gets a head start before the next begins. Raises the last error
    that says something about the provider, or else the last.
    """
    if len(addresses) == 1:
        return await attempt(addresses[0])
    waiting = list(addresses)
    tasks: set[asyncio.Task[Connection]] = set()
    failed: list[BaseException] = []
    stood: list[Connection] = []
    try:
        while True:
            if waiting:
                tasks.add(asyncio.create_task(attempt(waiting.pop(0))))
            patience = HEAD_START_S if waiting else None
            done, tasks = await asyncio.wait(
                tasks, timeout=patience, return_when=asyncio.FIRST_COMPLETED
            )
            stood = [task.result() for task in done if task.exception() is None]
            for surplus in stood[1:]:
                surplus.abort()
            if stood:
                return stood[0]
            failed += [error for task in done if (error := task.exception()) is not None]
            if not waiting and not tasks:
                telling = [error for error in failed if not is_ours(error)]
                raise (telling or failed)[-1]
    finally:
        try:
            await _withdraw(tasks)
        except asyncio.CancelledError:
            for one in stood:
                one.abort()  # Nobody is left to take it.
            raise


async def _withdraw(tasks: set[asyncio.Task[Connection]]) -> None:
    for task in tasks:
        task.cancel()
    try:
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        for task in tasks:
            if not task.cancelled() and task.exception() is None:
                task.result().abort()
