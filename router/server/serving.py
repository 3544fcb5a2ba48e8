"""A router's two listeners: the API and the admin port.

They open before the engines are loaded, so that probes and early clients get an answer instead of a refused
connection. When they stop, readiness goes first and the admin port last.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from router.config import address
from router.config.address import Address
from router.config.schema import Server
from router.errors import ConfigError, Problem
from router.server.admin import Admin, Scrape
from router.server.chat import Ask, Decode
from router.server.connection import Gate, Limits
from router.server.front import Front
from router.server.hosts import Hosts
from router.server.models import Models
from router.server.routes import Route, Routes
from router.wire.chat import decode_chat
from router.wire.embeddings import decode_embedding
from router.wire.legacy import decode_completion
from router.wire.operation import Operation

if TYPE_CHECKING:
    from router.app import Router

BACKLOG = 1024
"""Connections that may wait to be accepted; asyncio's 100 is little for a burst."""
ADMIN_CONNECTIONS = 64
"""Probes and scrapers are few; the API's clients can't use these up."""
ADMIN_BODY_BYTES = 1024 * 1024
"""A long conversation in the playground; no other admin route reads a body."""
DRAIN_POLL_S = 0.02
"""Waiting for answers to end is not urgent to the millisecond."""
GOODBYE_S = 1.0
"""For the errors of cut answers to reach their clients."""


def api_routes(router: Router) -> Routes:
    """The table of the API's listener."""
    models = Models(router)
    asks: tuple[tuple[Operation, Decode], ...] = (
        (Operation.CHAT, decode_chat),
        (Operation.COMPLETIONS, decode_completion),
        (Operation.EMBEDDINGS, decode_embedding),
    )
    return Routes(
        (
            *(
                Route(
                    "POST", f"/v1/{operation.value}", Ask(router, operation, decode), needs_key=True
                )
                for operation, decode in asks
            ),
            Route("GET", "/v1/models", models.every, needs_key=True),
            Route("GET", "/v1/models/", models.one, needs_key=True, prefix=True),
        )
    )


class Serving:
    """The listeners of one router; the router itself is started and closed by whoever made it."""

    def __init__(self, router: Router, scrape: Scrape) -> None:
        """``scrape`` makes the pages of /metrics."""
        self._router = router
        self._config = router.config.server
        self._admin = Admin(router, scrape) if self._config.admin is not None else None
        self._gates: list[Gate] = []
        self._servers: list[asyncio.Server] = []
        self.url = ""
        """Where clients connect, with the port that is in use; "" before the start."""
        self.admin_url: str | None = None

    async def start(self) -> None:
        """Open the listeners. Raises ConfigError where an address can't be had or must not be used."""
        config = self._config
        listen = _address(config.listen, "server.listen")
        if not self._router.config.asks_for_keys and not listen.is_loopback:
            message = "refuses to listen beyond this machine without keys"
            raise ConfigError(config.listen, [Problem(message, "server.listen")])
        hosts = None if self._router.config.asks_for_keys else Hosts(config.hosts)
        api = Gate(
            Front(api_routes(self._router), self._router.authenticate, hosts), _limits(config)
        )
        try:
            self.url = await self._open(api, listen, "server.listen")
            if self._admin is not None and config.admin is not None:
                admin = Gate(
                    Front(self._admin.routes(), self._router.authenticate), _admin_limits(config)
                )
                self.admin_url = await self._open(
                    admin, _address(config.admin, "server.admin"), "server.admin"
                )
        except BaseException:
            await self.stop(0)
            raise

    async def stop(self, drain_s: float) -> None:
        """Take no request more, nor keep any waiting for a target; give running answers ``drain_s`` to end, then end
        them with an explicit error.
        """
        if self._admin is not None:
            self._admin.draining = True
        self._router.stop_waiting()
        deadline = asyncio.get_running_loop().time() + drain_s
        for server in self._servers[:1]:
            server.close()
        for gate in self._gates[:1]:
            gate.drain()
            await _quiet(gate, drain_s)
            await _finish(gate)
        for server in self._servers[1:]:
            server.close()
        for gate in self._gates[1:]:
            gate.drain()
            await _quiet(gate, deadline - asyncio.get_running_loop().time())
            await _finish(gate)
        self._servers.clear()
        self._gates.clear()

    async def cut(self) -> None:
        """Don't wait any longer: end what still runs, now."""
        for gate in self._gates:
            await _finish(gate)

    async def _open(self, gate: Gate, at: Address, knob: str) -> str:
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(gate, at.host, at.port, backlog=BACKLOG)
        except OSError as error:
            message = f"can't listen there: {error.strerror or error}"
            raise ConfigError(f"{at.host}:{at.port}", [Problem(message, knob)]) from error
        for listening in server.sockets:
            # Those accepted inherit it. A client that vanished in a long silence of its answer is noticed some day.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._gates.append(gate)
        self._servers.append(server)
        host = f"[{at.host}]" if ":" in at.host else at.host
        return f"http://{host}:{server.sockets[0].getsockname()[1]}"


async def _quiet(gate: Gate, within_s: float) -> None:
    """Wait until nothing is under way, at most ``within_s``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while gate.busy and loop.time() < deadline:  # noqa: ASYNC110 - an event would be set on every request
        await asyncio.sleep(DRAIN_POLL_S)


async def _finish(gate: Gate) -> None:
    """End what still runs with an explicit error; then drop what is left."""
    gate.cut()
    await _quiet(gate, GOODBYE_S)
    gate.abort()
    await asyncio.sleep(0)


def _address(text: str, knob: str) -> Address:
    found = address.split(text)
    if found is None:
        raise ConfigError(text, [Problem("is not an address: host:port", knob)])
    return found


def _limits(config: Server) -> Limits:
    return Limits(
        max_connections=config.max_connections,
        max_body_bytes=config.max_body_bytes,
        header_timeout_s=config.header_timeout_s,
        body_timeout_s=config.body_timeout_s,
        keep_alive_s=config.keep_alive_s,
    )


def _admin_limits(config: Server) -> Limits:
    return Limits(
        max_connections=ADMIN_CONNECTIONS,
        max_body_bytes=ADMIN_BODY_BYTES,
        header_timeout_s=config.header_timeout_s,
        body_timeout_s=config.body_timeout_s,
        keep_alive_s=config.keep_alive_s,
    )
