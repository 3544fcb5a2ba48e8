"""llama.cpp as an engine: its server, inside this process, through ``xllamacpp``.

The package runs llama.cpp's own server loop (slots, batching, prefix reuse, chat templates,
grammars) on a thread of its own and takes a request as bytes. What this module decides is how to
live with it:

- A call blocks its thread until the answer is complete, so each runs on one of as many threads as
  there are slots (see llamacpp_call), and requests over that wait in our own line: there a cancel
  is immediate and the queue can be counted. A chunk's callback is where a cancel is noticed.
- The package can't be told not to listen. It listens on a Unix socket in a folder that only this
  user can enter, with a random key behind that; llamacpp_side makes use of it.
- It takes SIGINT and SIGTERM for itself when a model is loaded; they are given back to Python at
  once.
- Loading holds the interpreter's lock, so everything in the process stands still while weights are
  mapped. The slow part, paging them in, is left to a first request of one token, which doesn't hold
  it.

It does not set sampling defaults of a model.

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
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from engines.answer_plan import plan
from engines.base import EngineError, EngineInfo, Event, GenerateRequest, Health, WorkCosts
from engines.control_text import Vocabulary
from engines.cores import described, limited_threads
from engines.gguf import GgufError, GgufHead, read_gguf
from engines.grammar import CALL_END, CALL_START
from engines.llamacpp_call import Call, Model, Server, Words
from engines.llamacpp_chunks import ChunkReader, Reading, refusal
from engines.llamacpp_side import SideDoor
from engines.measured import remembered
from engines.slots import Slots
from engines.specs import LlamaCppSpec

PREFILL_BATCH_TOKENS = 128
"""A cancel within a prompt, and every running answer, waits for a batch to end. On a CPU 128 costs a
tenth of the prefill's speed and waits a third as long as 512; 64 costs no less than it saves."""

CONTEXT_STEP_TOKENS = 256
"""llama.cpp rounds each slot's context up to a multiple of this."""

_WARM_UP = b'{"messages":[{"role":"user","content":"Hi"}],"max_tokens":1,"stream":true}'


class LlamaCppEngine:
    """The Engine over llama.cpp; owned by one event loop."""

    def __init__(self, spec: LlamaCppSpec) -> None:
        self._spec = spec
        self._slots = Slots(spec.slots)
        self._context_tokens = spec.context_tokens
        self._threads: ThreadPoolExecutor | None = None
        self._model: Model | None = None
        self._folder = ""
        self._calls: set[Call] = set()
        self._past_iterations = 0

    async def start(self) -> EngineInfo:
        """Load the model. Raises EngineError: no package, no such file, not a model."""
        path = _model_path(self._spec.model)
        try:
            head = (await asyncio.to_thread(read_gguf, path)).head
        except GgufError as error:
            raise EngineError("invalid", str(error)) from error
        steps = -(-self._spec.context_tokens // CONTEXT_STEP_TOKENS)
        self._context_tokens = min(
            steps * CONTEXT_STEP_TOKENS, head.context_tokens or steps * CONTEXT_STEP_TOKENS
        )
        self._folder = tempfile.mkdtemp(prefix="nenya-")
        try:
            self._model = await asyncio.to_thread(
                _load, self._spec, path, self._context_tokens, head, self._folder
            )
            _keep_signals()
            await asyncio.to_thread(_warm_up, self._model.server, path)
        except EngineError:
            self._model = None
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._threads = ThreadPoolExecutor(self._spec.slots, thread_name_prefix="llamacpp")
        device = described(self._spec.threads)
        return EngineInfo(
            kind="llamacpp",
            model=path.stem,
            context_tokens=self._context_tokens,
            slots=self._spec.slots,
            kv_tokens=self._context_tokens * self._spec.slots,
            costs=self._spec.costs or await asyncio.to_thread(_known_costs, self._spec, device),
            device=device,
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """See Engine.generate."""
        model = self._model
        if model is None:
            raise EngineError("died", "the engine is not running")
        planned = plan(request, native=model.words.native)
        slots = min(request.n, self._spec.slots)
        await self._slots.acquire(slots)
        call = Call(planned, self._spec.slots, self._context_tokens)
        self._launch(call, slots)
        try:
            while events := await call.batch():
                for event in events:
                    yield event
        finally:
            call.cancel()

    def _launch(self, call: Call, slots: int) -> None:
        model, threads = self._model, self._threads
        if model is None or threads is None:
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
            try:
                call.run(model)
            finally:
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
        last = [self._model]
        self._model = None
        self._slots.fail(died)
        for call in list(self._calls):
            call.end(died)
        if self._threads is not None:
            await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(last.clear)
        shutil.rmtree(self._folder, ignore_errors=True)


def _known_costs(spec: LlamaCppSpec, device: str) -> WorkCosts | None:
    """What `nenya engines calibrate` has kept; measuring takes a processor longer than a start should."""
    found = remembered(spec, device)
    return None if found is None else found.costs


def _model_path(model: str) -> Path:
    if model != "starter":
        return Path(model).expanduser()
    starter = importlib.import_module("engines.starter")
    return Path(starter.gguf_path())


def _load(
    spec: LlamaCppSpec, path: Path, context_tokens: int, head: GgufHead, folder: str
) -> Model:
    """Start the server; blocking. Raises EngineError."""
    try:
        package: Any = importlib.import_module("xllamacpp")
    except ImportError as error:
        raise EngineError(
            "unsupported",
            f"the llamacpp engine needs xllamacpp: pip install 'nenya[llamacpp]' ({error})",
        ) from error
    key, socket = secrets.token_hex(32), f"{folder}/llamacpp.sock"
    parameters = _parameters(package, spec, path, context_tokens)
    parameters.hostnames = [socket]
    parameters.api_keys = [key]
    try:
        server: Server = package.Server(parameters)
    except RuntimeError as error:
        raise EngineError(
            "invalid",
            f"llama.cpp could not load {path} with {context_tokens} tokens of context for each of "
            f"{spec.slots} slots: an architecture it doesn't know, a file cut short, or too little "
            "memory",
        ) from error
    return Model(
        server,
        SideDoor(socket, key),
        _words(head),
        grammars=str(package.json_schema_to_grammar({})).startswith("%llguidance"),
    )


def _words(head: GgufHead) -> Words:
    tags = {CALL_START, CALL_END}
    return Words(
        Vocabulary.of(head.control_tokens, head.added_tokens, head.template),
        native=CALL_START in head.template and tags <= set(head.added_tokens),
        end=head.end_token if head.end_token.startswith("<") else "",
    )


def _parameters(package: Any, spec: LlamaCppSpec, path: Path, context_tokens: int) -> Any:
    parameters = package.CommonParams()
    parameters.model.path = str(path)
    parameters.n_parallel = spec.slots
    parameters.n_ctx = context_tokens * spec.slots  # it is divided among the slots
    parameters.n_batch = parameters.n_ubatch = max(PREFILL_BATCH_TOKENS, spec.slots)
    parameters.cache_ram_mib = 0  # by default 8 GiB of old prompts; slots keep their last anyway
    parameters.fit_params = False  # would load twice, and shrink the context without a word
    parameters.warmup = False  # would hold the interpreter's lock; see _warm_up
    parameters.reasoning_format = package.common_reasoning_format.COMMON_REASONING_FORMAT_DEEPSEEK
    parameters.n_threads_http = 1
    parameters.endpoint_slots = False
    parameters.ui = False
    parameters.verbosity = -1
    threads = spec.threads or limited_threads()
    if threads is not None:
        parameters.cpuparams.n_threads = threads
        parameters.cpuparams_batch.n_threads = threads
    return parameters


def _warm_up(server: Server, path: Path) -> None:
    """One token, so that the weights are in memory and a model that can't chat is found out now."""
    failures: list[EngineError] = []
    reader = ChunkReader(Reading())

    def on_chunk(data: bytes) -> bool:
        try:
            reader.read(data)
        except EngineError as error:
            failures.append(error)
        return bool(failures)

    try:
        server.handle_chat_completions(_WARM_UP, on_chunk)
    except (ValueError, RuntimeError) as error:
        failures.append(refusal(str(error)))
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
