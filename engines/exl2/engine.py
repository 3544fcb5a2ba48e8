"""The Engine over ExLlamaV2: requests are prepared on threads, written by the worker, read here on one event loop.

Every request goes to the generator at once and waits there for pages and a slot: the generator alone knows which fits.
A request counts as waiting until the worker has begun it, and as there until the worker has let go of it, so that a
generator that hangs is seen to hang whoever has left meanwhile.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from msgspec.structs import replace

from engines import measured
from engines.base import EngineError, EngineInfo, Event, GenerateRequest, Health
from engines.exl2.call import Call
from engines.exl2.loading import Machine, Model, examine
from engines.exl2.memory import PAGE_TOKENS, pages_of
from engines.exl2.prompt import Prepared, Preparer
from engines.exl2.worker import Choice, Refused, Step, Worker
from engines.specs import AnyExLlama, ExLlamaV2Spec

PREPARING_THREADS = 2
"""Tokenizers and grammars give the interpreter's lock away, templates don't; more threads would fight over it."""

LOADER = "NENYA_EXLLAMAV2_LOADER"
"""Names a module whose ``load`` is called instead of a library's own: for tests on a machine without a GPU."""

SEED_LIMIT = 1 << 63


class ExLlamaV2Engine:
    """See engines.base.Engine. exllamav3's as well: only what loads it, and a job's form, is another."""

    def __init__(self, spec: AnyExLlama) -> None:
        self.loaded: float | None = None
        self._kind = "exllamav2" if isinstance(spec, ExLlamaV2Spec) else "exllamav3"
        self._spec = spec
        self._worker: Worker | None = None
        self._preparer: Preparer | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Future[None] | None = None
        self._calls: set[Call] = set()
        self._closed = False
        self._gpu = ""

    async def start(self) -> EngineInfo:
        """Load the model. Raises EngineError with what is missing or wrong."""
        loop = self._loop = asyncio.get_running_loop()
        model = await asyncio.to_thread(examine, self._spec)
        self._ready = loop.create_future()
        worker = self._worker = Worker(
            functools.partial(self._load, model),
            lambda machine: self._tell(self._loaded, machine.gpu),
            lambda steps: self._tell(self._take, steps),
            lambda reason: self._tell(self._lost, reason),
        )
        worker.start()
        try:
            await self._ready
        except BaseException:
            worker.stop()
            raise
        self._threads = ThreadPoolExecutor(PREPARING_THREADS, thread_name_prefix="prompt")
        info = EngineInfo(
            kind=self._kind,
            model=model.folder.name,
            context_tokens=model.context_tokens,
            slots=self._spec.slots,
            kv_tokens=pages_of(self._spec.cache_tokens) * PAGE_TOKENS,
            costs=self._spec.costs,
            device=self._gpu,
        )
        if info.costs is not None:
            return info
        return replace(info, costs=await measured.known(self, info, self._spec))

    def _load(self, model: Model) -> Machine:
        """On the worker's thread."""
        own = "engines.exl2.loading" if self._kind == "exllamav2" else "engines.exl3.loading"
        loader: Any = importlib.import_module(os.environ.get(LOADER, own))
        try:
            machine: Machine = loader.load(model, self._progress)
            self._preparer = Preparer(model)
        except Exception as error:
            self._tell(self._unloadable, error)
            raise
        return machine

    def _progress(self, done: float) -> None:
        self.loaded = done

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """See Engine.generate."""
        call = self._begin(request, await self._prepared(request))
        try:
            while events := await call.batch():
                for event in events:
                    yield event
        finally:
            self._leave(call)

    async def _prepared(self, request: GenerateRequest) -> Prepared:
        if self._preparer is None or self._threads is None or self._worker is None:
            raise EngineError("died", "the engine is not running")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._preparer.prepare, request)

    def _begin(self, request: GenerateRequest, prepared: Prepared) -> Call:
        worker, preparer = self._worker, self._preparer
        if self._closed or worker is None or preparer is None:
            raise EngineError("died", "the engine is not running")
        if worker.error is not None:
            raise EngineError("died", worker.error)
        tokens = preparer.tokens
        call = Call(prepared.shown, tokens, len(prepared.ids))
        first = request.sampling.seed
        seeds = [None if first is None else (first + at) % SEED_LIMIT for at in range(request.n)]
        call.begin(
            [
                Choice(
                    owner=call,
                    index=index,
                    ids=prepared.ids,
                    new_tokens=prepared.new_tokens,
                    seed=seed,
                    settings=prepared.settings,
                    ends=tokens.ends,
                    steering=prepared.steering(tokens, seed),
                )
                for index, seed in enumerate(seeds)
            ]
        )
        self._calls.add(call)
        worker.submit(call.choices)
        return call

    def _leave(self, call: Call) -> None:
        """Whoever asked is gone, or has it all."""
        if self._worker is not None and call in self._calls:
            for choice in call.choices:
                self._worker.cancel(choice)

    # What the worker says, back on the loop.

    def _tell(self, hear: Any, *said: Any) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(hear, *said)

    def _take(self, steps: list[Step | Refused]) -> None:
        assert self._worker is not None, "who else speaks"
        cancel = self._worker.cancel
        for step in steps:
            call: Call = step.choice.owner
            if isinstance(step, Refused):
                call.refused(step)
            else:
                call.step(step, cancel)
            if not call.left:
                self._calls.discard(call)

    def _loaded(self, gpu: str) -> None:
        self._gpu = gpu
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    def _unloadable(self, error: Exception) -> None:
        if self._ready is None or self._ready.done():
            return
        if not isinstance(error, EngineError):
            error = EngineError("internal", f"{type(error).__name__}: {error}")
        self._ready.set_exception(error)

    def _lost(self, reason: str) -> None:
        calls, self._calls = self._calls, set()
        for call in calls:
            call.fail(EngineError("died", reason))

    def health(self) -> Health:
        """See Engine.health. Raises EngineError where the worker has ended by itself."""
        worker = self._worker
        if worker is None:
            return Health()
        if worker.error is not None:
            raise EngineError("died", f"the generator failed: {worker.error}")
        figures = worker.figures
        running = min(figures.running, len(self._calls))
        return Health(
            iterations=figures.iterations,
            running=running,
            waiting=len(self._calls) - running,
            kv_tokens_used=figures.pages_used * PAGE_TOKENS,
            prompt_tokens_left=figures.prompt_tokens_left,
            cached_tokens=figures.cached_tokens,
        )

    async def close(self) -> None:
        """Stop all work; iterators still open raise EngineError("died"). Frees the model."""
        self._closed = True
        if self._worker is not None:
            self._worker.stop()
            await asyncio.to_thread(self._worker.join)
            self._lost("the engine was closed")
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
