"""llama.cpp as an engine: its server, inside this process, through ``xllamacpp``.

The package runs llama.cpp's own server loop (slots, batching, prefix reuse, chat templates,
grammars) on a thread of its own and takes a request as bytes. What this module decides is how to
live with it:

- A call blocks its thread until the answer is complete, so each runs on one of as many threads as
  there are slots, and requests over that wait in our own line: there a cancel is immediate and the
  queue can be counted.
- A chunk's callback is where a cancel is noticed. Exceptions in it would be swallowed, so none
  leaves it. Events gather in a list and the loop is woken once for all that came since it last
  looked.
- The package can't be told not to listen. It listens on a Unix socket in a private folder that is
  removed as soon as it is bound, so that nobody can connect; a random key stands behind that.
- It takes SIGINT and SIGTERM for itself when a model is loaded; they are given back to Python at
  once.
- Loading holds the interpreter's lock, so everything in the process stands still while weights are
  mapped. The slow part, paging them in, is left to a first request of one token, which doesn't hold
  it.

It does not set sampling defaults of a model, nor separate a model's reasoning from its answer: both
are text.

Source: https://github.com/xorbitsai/xllamacpp
"""

from __future__ import annotations

import asyncio
import importlib
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from engines import llamacpp_wire as wire
from engines.base import EngineError, EngineInfo, Event, GenerateRequest, Health, Usage
from engines.gguf import GgufError, read_head
from engines.slots import Slots
from engines.specs import LlamaCppSpec

PREFILL_BATCH_TOKENS = 128
"""A cancel within a prompt, and every running answer, waits for a batch to end. On a CPU 128 costs a
tenth of the prefill's speed and waits a third as long as 512; 64 costs no less than it saves."""

CONTEXT_STEP_TOKENS = 256
"""llama.cpp rounds each slot's context up to a multiple of this."""

_WARM_UP = b'{"messages":[{"role":"user","content":"Hi"}],"max_tokens":1,"stream":true}'


class _Server(Protocol):
    """The part of ``xllamacpp.Server`` that is used."""

    def handle_chat_completions(self, body: bytes, callback: Callable[[bytes], bool]) -> None:
        """Answer; the callback gets each chunk and returns True to cancel."""


class _Call:
    """One request on its thread, and the way of its events to the loop."""

    def __init__(self, parts: list[tuple[wire.Part, wire.ChunkReader]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._parts = parts
        self._reader = parts[0][1]
        self._lock = threading.Lock()
        self._pending: list[Event] = []
        self._woken = False
        self._ready = asyncio.Event()
        self._cancelled = False
        self._ended = False
        self._error: EngineError | None = None
        self.iterations = 0
        """Chunks so far; written by the thread alone."""

    @property
    def kv_tokens(self) -> int:
        """Roughly, tokens held in the cache."""
        return self._reader.kv_tokens

    def run(self, server: _Server) -> None:
        """Make the calls; on the thread, blocking. Never raises."""
        try:
            for part, reader in self._parts:
                self._reader = reader
                server.handle_chat_completions(part.body, self._on_chunk)
                if self._cancelled or self._error is not None:
                    return
                if not reader.complete:
                    self._error = EngineError("died", "llama.cpp stopped within an answer")
                    return
            self._post([self._usage()])
        except (ValueError, RuntimeError) as error:
            self._error = wire.refusal(str(error))

    def _on_chunk(self, data: bytes) -> bool:
        if self._cancelled:
            return True
        self.iterations += 1
        try:
            events = self._reader.read(data)
            if events:
                self._post(events)
        except EngineError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001  # Cython would swallow it, and the answer with it
            self._error = EngineError("internal", f"{type(error).__name__}: {error}")
        return self._error is not None

    def _usage(self) -> Usage:
        readers = [reader for _, reader in self._parts]
        return Usage(
            input_tokens=readers[0].input_tokens,
            output_tokens=sum(reader.output_tokens for reader in readers),
            cached_input_tokens=readers[0].cached_tokens or 0,
        )

    def _post(self, events: list[Event]) -> None:
        with self._lock:
            self._pending += events
            if self._woken:
                return
            self._woken = True
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        with self._lock:
            self._woken = False
        self._ready.set()

    async def batch(self) -> list[Event]:
        """Wait for the events since the last look; none when all is said. Raises EngineError."""
        while True:
            with self._lock:
                events, self._pending = self._pending, []
            if events:
                return events
            if self._ended:
                if self._error is not None:
                    raise self._error
                return []
            self._ready.clear()
            await self._ready.wait()

    def cancel(self) -> None:
        """Stop at the next chunk."""
        self._cancelled = True

    def end(self, error: EngineError | None = None) -> None:
        """No more events will come; on the loop."""
        self._cancelled = self._ended = True
        self._error = self._error or error
        self._ready.set()


class LlamaCppEngine:
    """The Engine over llama.cpp; owned by one event loop."""

    def __init__(self, spec: LlamaCppSpec) -> None:
        self._spec = spec
        self._slots = Slots(spec.slots)
        self._context_tokens = spec.context_tokens
        self._threads: ThreadPoolExecutor | None = None
        self._server: _Server | None = None
        self._calls: set[_Call] = set()
        self._past_iterations = 0

    async def start(self) -> EngineInfo:
        """Load the model. Raises EngineError: no package, no such file, not a model."""
        path = _model_path(self._spec.model)
        try:
            head = read_head(path)
        except GgufError as error:
            raise EngineError("invalid", str(error)) from error
        steps = -(-self._spec.context_tokens // CONTEXT_STEP_TOKENS)
        self._context_tokens = min(
            steps * CONTEXT_STEP_TOKENS, head.context_tokens or steps * CONTEXT_STEP_TOKENS
        )
        self._server = await asyncio.to_thread(_load, self._spec, path, self._context_tokens)
        _keep_signals()
        try:
            await asyncio.to_thread(_warm_up, self._server, path)
        except EngineError:
            self._server = None
            raise
        self._threads = ThreadPoolExecutor(self._spec.slots, thread_name_prefix="llamacpp")
        return EngineInfo(
            kind="llamacpp",
            model=path.stem,
            context_tokens=self._context_tokens,
            slots=self._spec.slots,
            kv_tokens=self._context_tokens * self._spec.slots,
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """See Engine.generate."""
        forced = wire.forced_call(request)
        parts = wire.parts(request, forced, self._spec.slots, self._context_tokens)
        slots = min(request.n, self._spec.slots)
        await self._slots.acquire(slots)
        call = _Call([(part, wire.ChunkReader(part, forced)) for part in parts])
        self._launch(call, slots)
        try:
            while events := await call.batch():
                for event in events:
                    yield event
        finally:
            call.cancel()

    def _launch(self, call: _Call, slots: int) -> None:
        server, threads = self._server, self._threads
        if server is None or threads is None:
            self._slots.release(slots)
            raise EngineError("died", "the engine is not running")
        self._calls.add(call)
        loop = asyncio.get_running_loop()

        def over() -> None:
            self._calls.discard(call)
            self._past_iterations += call.iterations
            self._slots.release(slots)
            call.end()

        def work() -> None:
            call.run(server)
            loop.call_soon_threadsafe(over)

        threads.submit(work)

    def health(self) -> Health:
        """See Engine.health."""
        return Health(
            iterations=self._past_iterations + sum(call.iterations for call in self._calls),
            running=len(self._calls),
            waiting=self._slots.waiting,
            kv_tokens_used=sum(call.kv_tokens for call in self._calls),
        )

    async def close(self) -> None:
        """Stop all work; iterators still open raise EngineError("died"). Frees the model."""
        died = EngineError("died", "the engine was closed")
        last = [self._server]
        self._server = None
        self._slots.fail(died)
        for call in list(self._calls):
            call.end(died)
        if self._threads is not None:
            await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(last.clear)


def _model_path(model: str) -> Path:
    if model != "starter":
        return Path(model).expanduser()
    starter = importlib.import_module("engines.starter")
    return Path(starter.gguf_path())


def _load(spec: LlamaCppSpec, path: Path, context_tokens: int) -> _Server:
    """Start the server; blocking. Raises EngineError."""
    try:
        package: Any = importlib.import_module("xllamacpp")
    except ImportError as error:
        raise EngineError(
            "unsupported",
            f"the llamacpp engine needs xllamacpp: pip install 'nenya[llamacpp]' ({error})",
        ) from error
    private = tempfile.mkdtemp(prefix="nenya-")
    try:
        parameters = _parameters(package, spec, path, context_tokens)
        parameters.hostnames = [f"{private}/unused.sock"]
        server: _Server = package.Server(parameters)
    except RuntimeError as error:
        raise EngineError(
            "invalid",
            f"llama.cpp could not load {path} with {context_tokens} tokens of context for each of "
            f"{spec.slots} slots: an architecture it doesn't know, a file cut short, or too little "
            "memory",
        ) from error
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return server


def _parameters(package: Any, spec: LlamaCppSpec, path: Path, context_tokens: int) -> Any:
    parameters = package.CommonParams()
    parameters.model.path = str(path)
    parameters.n_parallel = spec.slots
    parameters.n_ctx = context_tokens * spec.slots  # it is divided among the slots
    parameters.n_batch = parameters.n_ubatch = max(PREFILL_BATCH_TOKENS, spec.slots)
    parameters.cache_ram_mib = 0  # by default 8 GiB of old prompts; slots keep their last anyway
    parameters.fit_params = False  # would load twice, and shrink the context without a word
    parameters.warmup = False  # would hold the interpreter's lock; see _warm_up
    parameters.reasoning_format = package.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    parameters.api_keys = [secrets.token_hex(32)]
    parameters.n_threads_http = 1
    parameters.endpoint_slots = False
    parameters.ui = False
    parameters.verbosity = -1
    if spec.threads is not None:
        parameters.cpuparams.n_threads = spec.threads
        parameters.cpuparams_batch.n_threads = spec.threads
    return parameters


def _warm_up(server: _Server, path: Path) -> None:
    """One token, so that the weights are in memory and a model that can't chat is found out now."""
    failures: list[EngineError] = []
    part = wire.Part(_WARM_UP, first_choice=0, choices=1)
    reader = wire.ChunkReader(part, None)

    def on_chunk(data: bytes) -> bool:
        try:
            reader.read(data)
        except EngineError as error:
            failures.append(error)
        return bool(failures)

    try:
        server.handle_chat_completions(_WARM_UP, on_chunk)
    except (ValueError, RuntimeError) as error:
        failures.append(wire.refusal(str(error)))
    if failures:
        message = f"{path} loads but can't answer: {failures[0].message}"
        raise EngineError("invalid", message) from failures[0]


def _keep_signals() -> None:
    """Give SIGINT and SIGTERM back to Python; possible only on the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        if handler is not None:
            signal.signal(number, handler)
