"""A process that hosts one engine: ``python -m engines.node --socket PATH``.

An engine shares its process with nobody, since its loop holds the interpreter's lock. The router
starts a node, writes one line to its standard input, the engine's spec as JSON (no secrets in the
list of processes, no limit of length), and keeps that pipe open: when it closes, the parent is gone
and the node ends. By hand: ``(cat spec.json; cat) | python -m engines.node --socket
/run/nenya/a.sock``, the spec on one line.

It listens on a Unix socket of mode 0600 in a folder of mode 0700 and speaks ``engines.protocol``.
Several routers may be connected; ids are each connection's own, and what a lost connection had
asked for is cancelled. Without any router for ORPHAN_S the node ends, so that none is left behind.

Exit codes:

    0  drained, by Drain or SIGTERM: running requests have ended
    1  ended at once by a second SIGTERM or SIGINT
    2  the spec or the socket's path is no good
    3  the model can't be loaded; one line on standard error, and Failed with id 0 to a router
    4  orphaned: standard input closed, or no router came (back)
    5  the engine is broken (out of GPU memory, a GPU that fails); one line on standard error

Memory is bounded where a router doesn't read: a request's events wait in its engine, and the
connection is dropped after STUCK_S. Restarting a node that died or hangs is its parent's business.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import enum
import importlib
import logging
import os
import signal
import stat
import sys
import threading
from pathlib import Path

import msgspec

from engines import protocol
from engines.base import Engine, EngineError, EngineInfo, Health, SlowLoader
from engines.link import Link
from engines.registry import make
from engines.specs import EngineSpec

ORPHAN_S = 10.0
"""A router that restarts is back sooner; a model is loaded again later."""

FAREWELL_S = 2.0
"""How long a node whose model can't be loaded waits for a router to tell it so."""

CLOSE_S = 5.0
"""How long an engine may take to stop before the process ends without it."""

MAX_SPEC_BYTES = 1 << 20
"""No spec comes near; more is something else than a spec."""

MAX_PATH_BYTES = 100
"""Of the 108 (104 on macOS) that a Unix socket's address holds, with its closing zero."""

LOG_LEVELS = ("debug", "info", "warning", "error")

STDIN = 0
"""The descriptor, since ``sys.stdin`` has a buffer; see read_line."""

log = logging.getLogger("engines.node")


class Exit(enum.IntEnum):
    """Why the process ended; see the module's docstring."""

    DRAINED = 0
    AT_ONCE = 1
    BAD_ORDERS = 2
    NO_MODEL = 3
    ORPHANED = 4
    BROKEN = 5


class BadOrdersError(ValueError):
    """The spec or the path can't be used."""


class Node:
    """One engine and the routers that are connected to it."""

    def __init__(self, spec: EngineSpec) -> None:
        self.engine: Engine | None = None
        self.info: EngineInfo | None = None
        self.draining = False
        self._spec = spec
        self._links: set[Link] = set()
        self._greeted = asyncio.Event()
        self._over: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def run(self, path: Path) -> Exit:
        """Listen, load and serve until there is a reason to end. Raises OSError: can't listen."""
        loop = asyncio.get_running_loop()
        old = os.umask(0o177)
        try:
            server = await loop.create_unix_server(lambda: Link(self), str(path))
        finally:
            os.umask(old)
        tasks = [asyncio.create_task(self._load()), asyncio.create_task(self._beat())]
        try:
            return await self._over
        finally:
            server.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108  # as quick as it looks; pathlib is flagged in async
            for task in tasks:
                task.cancel()
            await self._leave()

    def end(self, reason: Exit) -> None:
        """End with this reason, unless there is one already."""
        if not self._over.done():
            self._over.set_result(reason)

    def drain(self) -> None:
        """Refuse new requests and end when the running ones have."""
        self.draining = True
        self.settle()

    def settle(self) -> None:
        """End if this was the last request of a draining node."""
        if self.draining and not any(link.requests for link in self._links):
            self.end(Exit.DRAINED)

    def greeted(self, link: Link) -> None:
        """Take a router that has said Hello in the right version."""
        self._links.add(link)
        self._greeted.set()
        if self.info is None:
            link.send(self._loading())
        else:
            link.send(protocol.Ready(protocol.VERSION, self.info))

    def lost(self, link: Link) -> None:
        """Forget a router whose connection has ended."""
        self._links.discard(link)
        self.settle()

    def _loading(self) -> protocol.Loading:
        engine = self.engine
        return protocol.Loading(engine.loaded if isinstance(engine, SlowLoader) else None)

    async def _load(self) -> None:
        try:
            self.engine = make(self._spec)
            info = await self.engine.start()
        except EngineError as error:
            _complain(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._greeted.wait(), FAREWELL_S)
            for link in self._links:
                link.send(protocol.Failed(0, error.kind, error.message))
            self.end(Exit.NO_MODEL)
            return
        self.info = info
        log.info("ready: %s", info)
        for link in self._links:
            link.send(protocol.Ready(protocol.VERSION, info))

    async def _beat(self) -> None:
        """Tell all routers that the loop lives, and end if there have been none for long.

        Counts its own beats rather than the clock, so that time in which the process stood still doesn't count.
        """
        lonely_s = 0.0
        while lonely_s < ORPHAN_S:
            await asyncio.sleep(protocol.STATUS_INTERVAL_S)
            lonely_s = 0.0 if self._links else lonely_s + protocol.STATUS_INTERVAL_S
            try:
                health = Health() if self.engine is None else self.engine.health()
            except EngineError as error:
                if self.info is not None:  # else it failed to load, which says more
                    _complain(error)
                    self.end(Exit.BROKEN)
                    return
                health = Health()
            for link in self._links:
                if self.info is None:
                    link.send(self._loading())
                link.beat(protocol.Status(health, self.draining))
        self.end(Exit.ORPHANED)

    async def _leave(self) -> None:
        for link in list(self._links):
            await link.close()
        if self.engine is None:
            return
        try:
            await asyncio.wait_for(self.engine.close(), CLOSE_S)
        except TimeoutError:
            log.error("the engine did not stop within %g s", CLOSE_S)  # noqa: TRY400  # no news
            os._exit(self._over.result())  # its threads would keep the process for ever


def _complain(error: EngineError) -> None:
    print("engines.node:", " ".join(error.message.split()), file=sys.stderr, flush=True)  # noqa: T201


def read_line(descriptor: int) -> bytes:
    """Read up to the first newline, byte by byte of what a pipe holds. Raises BadOrdersError.

    Not through ``sys.stdin``: a thread that waits in its buffer makes the interpreter abort when it ends.
    """
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            break
        line += byte
        if len(line) > MAX_SPEC_BYTES:
            raise BadOrdersError(f"the spec is over {MAX_SPEC_BYTES} bytes")
    return bytes(line)


def read_spec(line: bytes) -> EngineSpec:
    """Read the spec's JSON. Raises BadOrdersError."""
    try:
        spec: EngineSpec = msgspec.json.decode(line, type=EngineSpec)
    except msgspec.MsgspecError as error:
        raise BadOrdersError(f"the first line of standard input is no spec: {error}") from error
    return spec


def prepare(path: Path) -> None:
    """Make the socket's folder, or see that it is private. Raises BadOrdersError."""
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise BadOrdersError(f"the socket's path is over {MAX_PATH_BYTES} bytes: {path}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(path.parent.stat().st_mode)
        if mode & 0o077:
            raise BadOrdersError(f"the folder {path.parent} is open to others: mode {mode:o}")
        if path.exists() and not path.is_socket():
            raise BadOrdersError(f"{path} is there and is no socket")
        path.unlink(missing_ok=True)
    except OSError as error:
        raise BadOrdersError(f"the socket's path can't be used: {error}") from error


def watch_parent(descriptor: int, node: Node) -> None:
    """End the node when standard input closes."""
    loop = asyncio.get_running_loop()

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(descriptor, 4096):
                pass
        with contextlib.suppress(RuntimeError):  # the loop is closed: the node has ended already
            loop.call_soon_threadsafe(node.end, Exit.ORPHANED)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def obey_signals(node: Node) -> None:
    """Drain at the first SIGTERM or SIGINT, end at once at the second."""
    loop = asyncio.get_running_loop()
    told = False

    def on_signal() -> None:
        nonlocal told
        if told:
            os._exit(Exit.AT_ONCE)
        told = True
        node.drain()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)


async def serve(path: Path, spec: EngineSpec) -> Exit:
    """Host the engine until there is a reason to end."""
    node = Node(spec)
    watch_parent(STDIN, node)
    obey_signals(node)
    return await node.run(path)


def main() -> int:
    """Run the node; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m engines.node", description="Hosts one engine.")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="warning")
    options = parser.parse_args()
    logging.basicConfig(level=options.log_level.upper(), stream=sys.stderr)
    try:
        spec = read_spec(read_line(STDIN))
        prepare(options.socket)
        return host(options.socket, spec)
    except (BadOrdersError, OSError) as error:
        print("engines.node:", error, file=sys.stderr)  # noqa: T201
        return Exit.BAD_ORDERS


def host(path: Path, spec: EngineSpec) -> Exit:
    """Run the event loop, uvloop's where it is installed. Raises OSError: can't listen."""
    try:
        new_event_loop = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        new_event_loop = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(serve(path, spec))


if __name__ == "__main__":
    sys.exit(main())
