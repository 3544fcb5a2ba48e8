"""The owner of one local engine's process: starts it, watches it, starts it again.

A model that can't be loaded the first time is a mistake in the config: FAILED, and the reason kept, because starting
again would only hide it. A node that was ready once is always started again, after a pause that doubles.

Health is progress, not an open port: a node whose heartbeat stops, or whose iterations stand still while requests
run, hangs, and a hanging node is killed. SIGKILL at once, for a process in a driver call hears nothing else. Loading
has no such sign of progress, only a limit.

`lifecycle` decides, without clock or I/O; LocalNode acts. Exit codes and arguments are those of engines.node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import msgspec

import engines
from engines.base import EngineError, EngineInfo, Event, GenerateRequest, Health
from engines.specs import EngineSpec
from router.backends.lifecycle import TICK_S, Lifecycle, Move, Settings, State, Watch
from router.backends.node_link import Listeners, NodeGeneration, NodeLink
from router.clock import Clock
from router.events import Listener, NodeState

EXIT_BAD_SPEC, EXIT_NO_MODEL = 2, 3
"""How a node ends when starting it again would be of no use."""

MAX_SOCKET_PATH_BYTES = 100
"""sun_path holds 108 bytes on Linux, 104 on macOS."""

_DEEPEST = "/nenya-12345678/nenya-12345678/unused.sock"
"""A node's folder, and the longest socket that an engine makes inside."""

DIAL_POLL_S = 0.02
"""Until a new process listens; starting Python takes ten times as long."""

MAX_LOG_LINE_BYTES = 4096
"""A line of a node's stderr; a longer one is logged in pieces."""


class LocalNode:
    """One engine in a process of its own."""

    def __init__(  # noqa: PLR0913 - the composition gives six; settings are for tests
        self,
        name: str,
        spec: EngineSpec,
        *,
        runtime_dir: Path,
        emit: Listener,
        on_available: Callable[[bool], None],
        clock: Clock,
        settings: Settings | None = None,
    ) -> None:
        """``on_available`` hears whenever the node begins or ceases to take requests.

        Sockets lie in private folders in ``runtime_dir``, or in the system's temporary folder where its path is too
        long for a socket.
        """
        self.name = name
        self.loaded: float | None = None
        """Share of the model that is loaded, where the engine says so."""
        self.detail = ""
        """Why the node is in its state, where there is a reason."""
        self._spec = spec
        self._runtime_dir = runtime_dir
        self._emit = emit
        self._on_available = on_available
        self._clock = clock
        self._settings = settings or Settings()
        self._life = Lifecycle(name, self._settings)
        self._log = logging.getLogger(f"nenya.engine.{name}")
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._link: NodeLink | None = None
        self._info: EngineInfo | None = None
        self._available = False
        self._urgent = False
        self._stopping = False
        self._refusal: EngineError | None = None
        self._changed = asyncio.Event()
        self._last_lines: deque[str] = deque(maxlen=1)
        self._engine = NodeEngine(self)

    @property
    def state(self) -> State:
        """Where the node stands."""
        return self._life.state

    @property
    def pid(self) -> int | None:
        """The process that runs now."""
        return self._process.pid if self._process is not None else None

    @property
    def info(self) -> EngineInfo | None:
        """What the engine is, once it was ready."""
        return self._info

    @property
    def engine(self) -> NodeEngine:
        """The engine, the same object for ever, whatever becomes of the process."""
        return self._engine

    @property
    def link(self) -> NodeLink | None:
        """The way to the node while requests can be taken."""
        return self._link if self._available else None

    async def start(self) -> None:
        """Begin; returns at once. Raises IllegalMove where the node was started already."""
        self._move(Move.START)
        self._urgent = self._stopping = False
        self._refusal = None
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def wait_ready(self) -> EngineInfo:
        """What the engine is, once requests can be taken.

        Raises EngineError where it never will: the model can't be loaded, or the node is stopped.
        """
        while True:
            if self.state is State.READY and self._info is not None:
                return self._info
            if self.state is State.FAILED and self._refusal is not None:
                raise EngineError(self._refusal.kind, f"engine {self.name}: {self.detail}")
            if self.state in {State.STOPPED, State.DRAINING}:
                raise EngineError("died", f"engine {self.name} is {self.state.value}")
            await self._changed.wait()

    async def close(self, drain_s: float = 0.0) -> None:
        """Stop: requests get ``drain_s`` to end, then SIGTERM, then SIGKILL; returns when nothing is left.

        Cancelling it kills the process at once. May be called twice, also at the same time.
        """
        task = self._task
        if task is None or self.state is State.STOPPED:
            return
        if self.state is not State.DRAINING:
            self._move(Move.CLOSE)
            self._offer(available=False)
        try:
            if drain_s > 0 and self._link is not None:
                self._link.drain()
                await asyncio.wait({task}, timeout=drain_s)
        except asyncio.CancelledError:
            self._urgent = True
            raise
        finally:
            await self._settle(task)
        if not task.cancelled():
            task.result()

    async def _settle(self, task: asyncio.Task[None]) -> None:
        if not self._stopping:  # once: a second cancellation would cut the end of the process short
            self._stopping = True
            task.cancel()
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            self._kill()  # its end is then a matter of milliseconds
            await asyncio.wait({task})
            raise
        finally:
            if self.state is State.DRAINING:
                self._move(Move.GONE)

    # The task: one process after another.

    async def _run(self) -> None:
        while True:
            error = await self._live()
            if self.state is State.DRAINING:
                return
            if self._refusal is not None:
                self._log.error("can't be started: %s", error.message)
                self._move(Move.REFUSED, error.message)
                return
            self._move(Move.CRASHED, error.message)
            pause_s = self._life.pause_s
            self._log.warning("%s; started again in %.1f s", error.message, pause_s)
            await self._clock.sleep(pause_s)
            self._move(Move.RETRY)

    async def _live(self) -> EngineError:
        """One process, from its start to its end, and what it died of."""
        self._last_lines.clear()
        try:
            with self._folder() as folder:
                socket = str(Path(folder) / "s")
                process = self._process = await self._spawn(socket)
                log = asyncio.create_task(self._copy_log(process))
                try:
                    error = await self._tend(process, socket)
                finally:
                    await self._bury(process, log)
        except (FileNotFoundError, PermissionError) as missing:
            error = EngineError("internal", f"can't start its process: {missing}")
            return self._judge(error, EXIT_BAD_SPEC)
        except OSError as short:
            return EngineError("internal", f"can't start its process: {short}")
        return self._judge(error, process.returncode or 0)

    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        base = self._runtime_dir
        if len(os.fsencode(base)) > MAX_SOCKET_PATH_BYTES - len(_DEEPEST):
            base = Path(tempfile.gettempdir())
        return tempfile.TemporaryDirectory(prefix="nenya-", dir=base, ignore_cleanup_errors=True)

    async def _spawn(self, socket: str) -> asyncio.subprocess.Process:
        """Start the process. Cancelling it leaves none: uvloop alone would forget one that is being started."""
        spawning = asyncio.ensure_future(self._exec(socket))
        try:
            process = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                process = await spawning
                _signal(process, signal.SIGKILL)
                await process.communicate()
            raise
        assert process.stdin is not None, "asked for below"
        # Open from here to the end: the node takes its closing for this process's death.
        process.stdin.write(msgspec.json.encode(self._spec) + b"\n")
        return process

    async def _exec(self, socket: str) -> asyncio.subprocess.Process:
        """-P: a folder named ``engines`` where the router was started must not be taken for ours.

        What the process leaves behind when it is killed stays in its own folder, which is removed.
        """
        python = self._settings.python
        environment = {**os.environ, "TMPDIR": str(Path(socket).parent)}
        if python == sys.executable:
            roots = [str(Path(engines.__path__[0]).parent), environment.get("PYTHONPATH")]
            environment["PYTHONPATH"] = os.pathsep.join(root for root in roots if root)
        return await asyncio.create_subprocess_exec(
            *(python, "-P", "-m", "engines.node", "--socket", socket),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )

    async def _tend(self, process: asyncio.subprocess.Process, socket: str) -> EngineError:
        """Bring a process up and watch it until something is wrong; returns what."""
        watch = Watch(self._settings, self._clock.now())
        lost: asyncio.Future[EngineError] = asyncio.get_running_loop().create_future()

        def on_lost(error: EngineError) -> None:
            self._offer(available=False)
            lost.set_result(error)

        listeners = Listeners(
            on_loading=self._note_loading,
            on_status=lambda status: watch.hear(status, self._clock.now()),
            on_lost=on_lost,
        )
        link = NodeLink(socket, listeners)
        try:
            await self._bring_up(process, link)
            watch.complaint(self._clock.now())
            return await self._guard(process, watch, lost)
        except TimeoutError:
            _signal(process, signal.SIGKILL)
            return EngineError("internal", "its process did not come up in time")
        except EngineError as error:
            return error
        finally:
            self._offer(available=False)
            self._link = None
            await link.close()

    async def _bring_up(self, process: asyncio.subprocess.Process, link: NodeLink) -> None:
        async with asyncio.timeout(self._settings.start_s):
            while True:
                try:
                    await link.dial()
                    break
                except OSError:
                    if process.returncode is not None:
                        raise EngineError("died", "its process ended early") from None
                    await self._clock.sleep(DIAL_POLL_S)
        self._move(Move.DIALLED)
        async with asyncio.timeout(self._settings.load_s):
            self._info = await link.start()
        self._link = link
        self._move(Move.LOADED)
        self._offer(available=True)

    async def _guard(
        self, process: asyncio.subprocess.Process, watch: Watch, lost: asyncio.Future[EngineError]
    ) -> EngineError:
        while not lost.done():
            await asyncio.wait({lost}, timeout=TICK_S)
            complaint = watch.complaint(self._clock.now())
            if complaint is not None and not lost.done():
                _signal(process, signal.SIGKILL)
                return EngineError("internal", complaint)
        return lost.result()

    async def _bury(self, process: asyncio.subprocess.Process, log: asyncio.Task[None]) -> None:
        """See a process to its end: by itself, by SIGTERM when closing, by SIGKILL when neither helps.

        Its last words must be in the log, and its exit code known, before anyone judges it.
        """
        ended = asyncio.ensure_future(process.wait())
        try:
            if self.state is State.DRAINING and not self._urgent:
                _signal(process, signal.SIGTERM)
            grace_s = 0.0 if self._urgent else self._settings.grace_s
            await asyncio.wait({ended, log}, timeout=grace_s)
        finally:
            _signal(process, signal.SIGKILL)
            if process.stdin is not None:
                process.stdin.close()
            await ended
            log.cancel()
            await asyncio.wait({log})
            self._process = None

    def _judge(self, error: EngineError, code: int) -> EngineError:
        """What a process died of, in words; notes where starting it again would be of no use."""
        if error.kind == "died":
            last = f": {self._last_lines[0]}" if self._last_lines else ""
            error = EngineError("died", f"its process {_ending(code)}{last}")
        hopeless = code in {EXIT_BAD_SPEC, EXIT_NO_MODEL} or error.kind in {
            "unsupported",
            "invalid",
        }
        if hopeless and not self._life.was_ready:
            self._refusal = error
        return error

    async def _copy_log(self, process: asyncio.subprocess.Process) -> None:
        """A node's stderr, line by line, into the log."""
        assert process.stderr is not None, "asked for in _spawn"
        rest = b""
        while data := await process.stderr.read(MAX_LOG_LINE_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) >= MAX_LOG_LINE_BYTES:
                lines.append(rest)
                rest = b""
            for line in lines:
                self._log_line(line)
        self._log_line(rest)

    def _log_line(self, line: bytes) -> None:
        text = line.decode(errors="replace").strip()
        if text:
            self._last_lines.append(text)
            self._log.info("%s", text)

    def _note_loading(self, done: float | None) -> None:
        self.loaded = done

    def _kill(self) -> None:
        self._urgent = True
        if self._process is not None:
            _signal(self._process, signal.SIGKILL)

    def _offer(self, *, available: bool) -> None:
        if available != self._available:
            self._available = available
            self._on_available(available)

    def _move(self, event: Move, detail: str = "") -> None:
        state = self._life.move(event, self._clock.now())
        self.detail = detail
        self._changed.set()
        self._changed = asyncio.Event()
        self._emit(NodeState(self.name, state.value, detail))


class NodeEngine:
    """A LocalNode as an Engine: fails fast while no process can take requests."""

    def __init__(self, node: LocalNode) -> None:
        self._node = node

    async def start(self) -> EngineInfo:
        """Wait until the node is ready. Raises EngineError."""
        return await self._node.wait_ready()

    def begin(self, request: GenerateRequest) -> NodeGeneration:
        """Start ``request``. Raises EngineError, ``died`` while no node is up."""
        return self._up().begin(request)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Events of one request. Raises EngineError, ``died`` while no node is up."""
        async with contextlib.aclosing(self._up().generate(request)) as events:
            async for event in events:
                yield event

    def health(self) -> Health:
        """The node's last word."""
        link = self._node.link
        return link.health() if link is not None else Health()

    async def close(self) -> None:
        """Stop the node."""
        await self._node.close()

    def _up(self) -> NodeLink:
        node = self._node
        if node.link is None:
            why = f" ({node.detail})" if node.detail else ""
            raise EngineError("died", f"engine {node.name} is {node.state.value}{why}")
        return node.link


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Send a signal; nothing where the process is over.

    Not by ``process.send_signal``: in asyncio it polls first, and a poll that finds the process dead takes the exit
    code away from the loop, which then reports 255.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _ending(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
