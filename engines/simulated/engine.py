"""The simulated engine in real time: the step model behind the same interface as a real engine.

One task takes step after step from the model, sleeps as long as each took and hands its tokens out.
Timers are coarser than fast steps, so it keeps the time a step was due and never sleeps for what it
is behind: rates are right on average though single tokens of a fast engine come in small groups, as
they do from a real one.

Every choice of a request is a job of the model; all are queued at once.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from itertools import count

from engines.base import (
    EngineError,
    EngineInfo,
    Event,
    Finish,
    GenerateRequest,
    Health,
    Usage,
)
from engines.simulated.faults import SLOW_FIRST_TOKEN_S, Fault, Faults
from engines.simulated.model import (
    Costs,
    Finished,
    NeverFits,
    Prompt,
    Started,
    StepEvent,
    StepModel,
    Token,
)
from engines.simulated.text import Limit, Script, last_message, prompt_of, write
from engines.specs import SimulatedSpec

DIE_EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h: told apart from every way a node ends by itself."""

MAX_LAG_S = 0.1
"""A process that was stopped for longer than this doesn't hurry to make up for it."""


def _die() -> None:
    os._exit(DIE_EXIT_CODE)


class Surroundings:
    """What the engine takes from the world; tests give their own."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        die: Callable[[], None] = _die,
    ) -> None:
        self.clock = clock
        self.sleep = sleep
        self.die = die


class _Request:
    """One request in work: its scripts, and the events its reader has not taken yet."""

    def __init__(self, prompt: Prompt, jobs: dict[int, Script], fault: Fault | None) -> None:
        self.prompt = prompt
        self.jobs = jobs
        self.fault = fault
        self.cached_tokens = prompt.tokens
        self.unfinished = len(jobs)
        self.pending: list[Event] = []
        self.error: EngineError | None = None
        self.ready = asyncio.Event()

    @property
    def faulty_token(self) -> int:
        """The token of its first choice at which a fault in the middle strikes."""
        return len(next(iter(self.jobs.values())).deltas) // 2

    def fail(self, error: EngineError) -> None:
        self.error = error
        self.ready.set()

    def usage(self) -> Usage:
        output_tokens = sum(len(script.deltas) for script in self.jobs.values())
        return Usage(self.prompt.tokens, output_tokens, self.cached_tokens)

    async def batch(self) -> list[Event]:
        """Wait for events; at least one. Raises EngineError."""
        while not self.pending:
            if self.error is not None:
                raise self.error
            self.ready.clear()
            await self.ready.wait()
        events, self.pending = self.pending, []
        return events


class SimulatedEngine:
    """The Engine over a StepModel; owned by one event loop."""

    def __init__(self, spec: SimulatedSpec, surroundings: Surroundings | None = None) -> None:
        self._spec = spec
        self._world = Surroundings() if surroundings is None else surroundings
        self._model = StepModel(Costs.of(spec))
        self._faults = Faults({}, random.Random(spec.seed))  # noqa: S311  # no secret
        self._ids = count(1)
        self._jobs: dict[int, _Request] = {}
        self._stalled: set[int] = set()
        self._work = asyncio.Event()
        self._hung = False
        self._cached_tokens = 0
        self._pump: asyncio.Task[None] | None = None

    async def start(self) -> EngineInfo:
        """See Engine.start. Raises EngineError for unknown faults."""
        spec = self._spec
        self._faults = Faults(spec.faults, random.Random(spec.seed))  # noqa: S311  # no secret
        self._pump = asyncio.create_task(self._run(), name="simulated engine")
        return EngineInfo(
            kind="simulated",
            model="simulated",
            context_tokens=spec.context_tokens,
            slots=spec.slots,
            kv_tokens=spec.kv_tokens,
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """See Engine.generate."""
        fault = self._faults.strike(last_message(request))
        if fault is Fault.FAIL_BEFORE:
            raise EngineError("internal", "a simulated failure before the first token")
        if fault is Fault.SLOW_FIRST_TOKEN:
            await self._world.sleep(SLOW_FIRST_TOKEN_S)
        work = self._submit(request, fault)
        try:
            while work.unfinished or work.pending:
                for event in await work.batch():
                    yield event
            yield work.usage()
        finally:
            self._forget(work)

    def _submit(self, request: GenerateRequest, fault: Fault | None) -> _Request:
        if self._pump is None:
            raise EngineError("died", "the engine is not running")
        prompt = prompt_of(request, self._model.costs.page_tokens)
        limit = self._limit(request, prompt)
        scripts = {
            next(self._ids): write(request, choice, limit, self._spec.seed)
            for choice in range(request.n)
        }
        work = _Request(prompt, scripts, fault)
        try:
            for id_, script in work.jobs.items():
                self._model.submit(id_, prompt, limit.tokens, len(script.deltas))
                self._jobs[id_] = work
        except NeverFits as error:
            self._forget(work)
            raise EngineError("prompt_too_long", f"prompt and answer have {error}") from error
        self._work.set()
        return work

    def _limit(self, request: GenerateRequest, prompt: Prompt) -> Limit:
        """Return how long an answer may be. Raises EngineError where nothing fits."""
        if request.max_tokens is not None and request.max_tokens < 1:
            raise EngineError("invalid", f"max_tokens must be at least 1, not {request.max_tokens}")
        room = self._spec.context_tokens - prompt.tokens
        if room < 1:
            raise EngineError(
                "prompt_too_long",
                f"the prompt has {prompt.tokens} tokens; the context holds "
                f"{self._spec.context_tokens}",
            )
        wanted = self._spec.answer_tokens if request.max_tokens is None else request.max_tokens
        return Limit(min(wanted, room), cuts=request.max_tokens is not None or wanted > room)

    def _forget(self, work: _Request) -> None:
        for id_ in work.jobs:
            self._model.cancel(id_)
            self._jobs.pop(id_, None)
            self._stalled.discard(id_)

    async def _run(self) -> None:
        clock = self._world.clock
        due = clock()
        while True:
            result = None if self._hung else self._model.step()
            if result is None:
                self._work.clear()
                await self._work.wait()
                due = clock()
                continue
            due = max(due, clock() - MAX_LAG_S) + result.duration_s
            await self._world.sleep(max(0.0, due - clock()))
            for event in result.events:
                self._deliver(event)

    def _deliver(self, event: StepEvent) -> None:
        work = self._jobs.get(event.id)
        if work is None or event.id in self._stalled or self._struck(work, event):
            return
        script = work.jobs[event.id]
        if isinstance(event, Started):
            work.cached_tokens = min(work.cached_tokens, event.cached_tokens)
            self._cached_tokens += event.cached_tokens
        elif isinstance(event, Token):
            delta = script.deltas[event.index]
            if delta.text or delta.tool_calls:
                work.pending.append(delta)
                work.ready.set()
        else:
            work.pending.append(Finish(script.deltas[0].choice, script.reason))
            work.unfinished -= 1
            work.ready.set()

    def _struck(self, work: _Request, event: StepEvent) -> bool:
        """Let the request's fault strike if this is its moment; True where the event is lost to it."""
        if work.fault is None or event.id != next(iter(work.jobs)) or isinstance(event, Finished):
            return False
        if isinstance(event, Started):
            if work.fault is Fault.OOM:
                work.fail(EngineError("internal", "a simulated lack of memory"))
                self._forget(work)
            return work.fault is Fault.OOM
        if event.index != work.faulty_token:
            return False
        if work.fault is Fault.DIE:
            self._world.die()
        elif work.fault is Fault.HANG:
            self._hung = True
        elif work.fault is Fault.STALL:
            self._stalled.update(work.jobs)
        elif work.fault is Fault.FAIL_MID:
            work.fail(EngineError("internal", "a simulated failure in the middle of an answer"))
            self._forget(work)
        else:
            return False
        return True

    def health(self) -> Health:
        """See Engine.health."""
        return Health(
            iterations=self._model.steps,
            running=self._model.running,
            waiting=self._model.waiting,
            kv_tokens_used=self._model.kv_tokens_used,
            prompt_tokens_left=self._model.prompt_tokens_left,
            cached_tokens=self._cached_tokens,
        )

    async def close(self) -> None:
        """Stop all work; iterators still open raise EngineError("died")."""
        pump, self._pump = self._pump, None
        if pump is not None:
            pump.cancel()
            await asyncio.wait([pump])
        for work in set(self._jobs.values()):
            work.fail(EngineError("died", "the engine was closed"))
            self._forget(work)
