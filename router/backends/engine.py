"""An engine as a backend: OpenAI's request becomes the engine's, the engine's events become OpenAI's bytes.

What becomes of each parameter is in `engine_request`.

There is one way to read events, `Generation`: everything that has come, in one wait. A node's link offers it
natively; an engine in this process is pumped into it by one task a request. A task a token, or a wait a token, would
cost more than the rest of the relay.

Not done here: retries, and starting or stopping the engine; it belongs to whoever made it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from msgspec.structs import replace

from engines.base import Delta, Engine, EngineError, Event, Finish, GenerateRequest, Usage
from router.backends.base import Facts, Order, Sink, Told
from router.backends.engine_request import engine_requests
from router.backends.mailbox import Alarm, Mailbox
from router.errors import ApiError, Fault, FaultKind, invalid_request
from router.events import Generated, Listener
from router.wire.chat import ChatRequest
from router.wire.completion import (
    ID_BYTES,
    ChunkEncoder,
    CompletionBuilder,
    Identity,
    OutOfOrder,
    Writer,
    new_id,
)
from router.wire.legacy import CompletionRequest
from router.wire.record import Record
from router.wire.request import Request
from router.wire.text_completion import ID_PREFIX, Form, text_writer

MAX_WAITING_BYTES = 4 * 1024 * 1024
"""Events that nobody reads: some 60,000 tokens, or 1,500 with all the logprobs one can ask for."""

_KINDS: Mapping[str, FaultKind] = MappingProxyType(
    {
        "busy": FaultKind.ENGINE_BUSY,
        "died": FaultKind.ENGINE_DIED,
        "internal": FaultKind.ENGINE_ERROR,
    }
)


class Generation(Protocol):
    """One request under way in an engine."""

    async def take(self, until: float) -> list[Event]:
        """Every event that has come, at least one; ``[]`` after the last.

        Raises TimeoutError at ``until`` (the loop's time), or EngineError. Cancelling it cancels only the wait.
        """

    def cancel(self) -> None:
        """Stop the work at once; nothing where it is over."""


@runtime_checkable
class BatchingEngine(Protocol):
    """An engine whose events can be had in batches."""

    def begin(self, request: GenerateRequest) -> Generation:
        """Start ``request``. Raises EngineError."""


class EngineBackend:
    """Answers made by one engine."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        *,
        entropy: Callable[[int], bytes] = os.urandom,
        emit: Listener = lambda _: None,
    ) -> None:
        """``entropy`` gives that many random bytes, for ids."""
        self.name = name
        self._emit = emit
        self._engine = engine
        self._entropy = entropy
        self._answers: set[EngineAnswer] = set()
        digest = hashlib.blake2s(name.encode(), digest_size=5).hexdigest()
        self._fingerprint = f"fp_{digest}"

    async def open(self, order: Order) -> EngineAnswer:
        """Ask the engine; returns once its first events are there.

        Raises Fault. Cancelling it leaves nothing behind.
        """
        try:
            requests = engine_requests(order)
        except ApiError as error:
            raise Fault(FaultKind.CLIENT_ERROR, error.error.message, answer=error) from error
        if asyncio.get_running_loop().time() >= order.deadline:
            raise Fault(FaultKind.DEADLINE, "The request's time was up before its turn came.")
        generation = self._begin_all(requests, order.request)
        answer = EngineAnswer(generation, order, self._writer(order), self)
        self._answers.add(answer)
        try:
            await answer.wait_head()
        except BaseException:
            answer.close()
            raise
        return answer

    async def close(self) -> None:
        """Cancel what runs. The engine itself stays as it is."""
        for answer in tuple(self._answers):
            answer.close()

    def over(self, answer: EngineAnswer) -> None:
        """The answer is done with."""
        self._answers.discard(answer)

    def wrote(self, usage: Usage, first_token_s: float, duration_s: float) -> None:
        """An answer is whole, and what it took."""
        tokens = usage.input_tokens, usage.cached_input_tokens, usage.output_tokens
        self._emit(Generated(self.name, first_token_s, duration_s, *tokens))

    def _begin_all(self, requests: Sequence[GenerateRequest], request: Request) -> Generation:
        try:
            if len(requests) == 1:
                return self._begin(requests[0])
            return _InTurn(self._begin, requests)
        except EngineError as error:
            raise fault_of(error, _prompt_name(request)) from error

    def _begin(self, request: GenerateRequest) -> Generation:
        engine = self._engine
        if isinstance(engine, BatchingEngine):
            return engine.begin(request)
        return _Pumped(engine.generate(request))

    def _writer(self, order: Order) -> Writer:
        request = order.request
        usage = request.wants_usage
        entropy = self._entropy(ID_BYTES)
        if isinstance(request, CompletionRequest):
            form = Form(
                prompts=request.texts or (),
                n=request.n or 1,
                echo=bool(request.echo),
                logprobs=request.logprobs is not None,
            )
            identity = self._identity(order, new_id(entropy, ID_PREFIX))
            return text_writer(identity, form, stream=bool(request.stream), include_usage=usage)
        assert isinstance(request, ChatRequest), "engine_requests refuses everything else"
        tier = "default" if request.service_tier is not None else None
        identity = self._identity(order, new_id(entropy), tier)
        n, logprobs = request.n or 1, bool(request.logprobs)
        if request.stream:
            return ChunkEncoder(identity, n=n, include_usage=usage, logprobs=logprobs)
        return CompletionBuilder(identity, n=n, logprobs=logprobs)

    def _identity(self, order: Order, answer_id: str, tier: str | None = None) -> Identity:
        return Identity(
            id=answer_id,
            created=order.created,
            model=order.request.model or order.model,
            system_fingerprint=self._fingerprint,
            service_tier=tier,
        )


class EngineAnswer:
    """An answer that an engine is writing."""

    headers: Mapping[str, str] = MappingProxyType({})

    __slots__ = (
        "_begun_at", "_generation", "_head", "_loop", "_order", "_over", "_owner", "_writer", "facts",
    )  # fmt: skip

    def __init__(
        self,
        generation: Generation,
        order: Order,
        writer: Writer,
        owner: EngineBackend,
    ) -> None:
        self._generation = generation
        self._order = order
        self._writer = writer
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._begun_at = self._loop.time()
        self._head: list[Event] = []
        self._over = False
        self.facts = Facts()

    async def wait_head(self) -> None:
        """Return once the first events are there. Raises Fault."""
        self._head = await self._take(
            self._order.limits.first_token_s, FaultKind.TIMEOUT_FIRST_BYTE
        )
        self.facts.first_token_at = self._loop.time()

    async def read(self) -> bytes:
        """The next whole events of a stream, or the one JSON object; ``b""`` after the last. Raises Fault, once."""
        while not self._over:
            try:
                blob = await self._next()
            except Fault:
                self.close()
                raise
            if blob:
                return blob
        return b""

    async def pour(self, sink: Sink, record: Record | None = None) -> None:
        """Nothing: its events come several at a time, and are written out where they are read."""

    def close(self) -> None:
        """Cancel what still runs, at once. May be called twice."""
        self._over = True
        self._head = []
        self._generation.cancel()
        self._owner.over(self)

    def told(self) -> Told:
        """See `base.Answer`."""
        return Told(self.facts, self._order.model, self._writer.reasons)

    async def _next(self) -> bytes:
        events = self._head
        self._head = []
        if not events:
            events = await self._take(self._order.limits.idle_s, FaultKind.TIMEOUT_IDLE)
        try:
            blob = self._writer.feed(events)
        except OutOfOrder as error:
            message = f"The engine broke its contract: {error}."
            raise Fault(FaultKind.ENGINE_ERROR, message) from error
        last = events[-1]
        if isinstance(last, Usage):
            self._finish(last)
        return blob

    async def _take(self, limit_s: float, late: FaultKind) -> list[Event]:
        deadline = self._order.deadline
        try:
            events = await self._generation.take(min(deadline, self._loop.time() + limit_s))
        except TimeoutError as error:
            if self._loop.time() >= deadline:
                raise Fault(FaultKind.DEADLINE, "The request's time was up.") from error
            raise Fault(late, f"The engine was silent for {limit_s:g} s.") from error
        except EngineError as error:
            raise fault_of(error, _prompt_name(self._order.request)) from error
        if not events:
            message = "The engine stopped before its answer was whole."
            raise Fault(FaultKind.ENGINE_ERROR, message)
        return events

    def _finish(self, usage: Usage) -> None:
        facts = self.facts
        facts.input_tokens = usage.input_tokens
        facts.cached_input_tokens = usage.cached_input_tokens
        facts.output_tokens = usage.output_tokens
        facts.finished = True
        begun_at, now = self._begun_at, self._loop.time()
        self._owner.wrote(usage, (facts.first_token_at or now) - begun_at, now - begun_at)
        self.close()


class _Pumped:
    """A Generation over an engine's iterator: one task reads it into a mailbox."""

    __slots__ = ("_box", "_task")

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        loop = asyncio.get_running_loop()
        self._box: Mailbox[Event] = Mailbox(
            Alarm(loop), high_water=MAX_WAITING_BYTES, on_full=self._overflow
        )
        self._task = loop.create_task(self._pump(events))
        self._task.add_done_callback(self._end)

    async def take(self, until: float) -> list[Event]:
        return await self._box.take(until)

    def cancel(self) -> None:
        self._task.cancel()
        self._box.stop_timer()

    async def _pump(self, events: AsyncGenerator[Event, None]) -> None:
        async for event in events:
            self._box.put(event, weight(event))

    def _overflow(self) -> None:
        self._box.end(Unread())
        self._task.cancel()

    def _end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._box.end(EngineError("internal", "the engine was cancelled"))
            return
        error = task.exception()
        if error is not None and not isinstance(error, EngineError):
            broken = EngineError("internal", f"the engine broke: {type(error).__name__}: {error}")
            broken.__cause__ = error
            error = broken
        self._box.end(error)


class _InTurn:
    """A Generation of several prompts, one after another: their choices numbered through, their usage added up.

    Not side by side: one client's list of a thousand prompts would fill every slot and the queue behind them.
    """

    __slots__ = ("_at", "_begin", "_current", "_requests", "_usage")

    def __init__(
        self,
        begin: Callable[[GenerateRequest], Generation],
        requests: Sequence[GenerateRequest],
    ) -> None:
        self._begin = begin
        self._requests = requests
        self._at = 0
        self._usage = Usage(0, 0)
        self._current = begin(requests[0])

    async def take(self, until: float) -> list[Event]:
        while True:
            events = await self._current.take(until)
            taken = [self._numbered(event) for event in events]
            if not events or not isinstance(events[-1], Usage):
                return taken
            if self._at + 1 == len(self._requests):
                return taken
            self._at += 1
            self._current.cancel()
            self._current = self._begin(self._requests[self._at])
            if len(taken) > 1:
                return taken[:-1]

    def cancel(self) -> None:
        self._current.cancel()

    def _numbered(self, event: Event) -> Event:
        if isinstance(event, Delta | Finish):
            n = self._requests[self._at].n
            # What isn't this prompt's must not pass for another's.
            known = 0 <= event.choice < n
            return replace(event, choice=self._at * n + event.choice if known else -1)
        total = self._usage
        self._usage = Usage(
            total.input_tokens + event.input_tokens,
            total.output_tokens + event.output_tokens,
            total.cached_input_tokens + event.cached_input_tokens,
        )
        return self._usage


def weight(event: Event) -> int:
    """About the bytes that ``event`` holds in memory; objects cost some 64 each."""
    if not isinstance(event, Delta):
        return 64
    size = 64 + len(event.text) + len(event.reasoning)
    for piece in event.tool_calls:
        size += 64 + len(piece.arguments)
    for token in event.logprobs:
        size += 128 * (1 + len(token.top))
    return size


class Unread(EngineError):  # noqa: N818 - names the event
    """Nobody reads the request's events, so it was ended; no fault of the engine."""

    def __init__(self) -> None:
        super().__init__("internal", "more of the answer waits to be read than may be kept")


def fault_of(error: EngineError, prompt_name: str = "messages") -> Fault:
    """An engine's failure as the dispatcher understands it. ``prompt_name``: the parameter that can be too long."""
    kind = FaultKind.CLIENT_SLOW if isinstance(error, Unread) else _KINDS.get(error.kind)
    if kind is not None:
        return Fault(kind, error.message)
    if error.kind == "prompt_too_long":
        code = "context_length_exceeded"
        answer = invalid_request(error.message, param=prompt_name, code=code)
        return Fault(FaultKind.CONTEXT_LENGTH, error.message, answer=answer)
    answer = invalid_request(error.message)
    return Fault(FaultKind.CLIENT_ERROR, error.message, answer=answer)


def _prompt_name(request: Request) -> str:
    return "prompt" if isinstance(request, CompletionRequest) else "messages"
