"""An engine as a backend: OpenAI's request becomes the engine's, the engine's events become OpenAI's bytes.

What only the engine reads (messages, tools, schemas) goes through as the client's own bytes. What no engine here can
do is refused by name, with a 400, before anything is sent; a parameter is ignored only where the answer is as right
without it. IGNORED and REFUSED list them all.

There is one way to read events, `Generation`: everything that has come, in one wait. A node's link offers it
natively; an engine in this process is pumped into it by one task a request. A task a token, or a wait a token, would
cost more than the rest of the relay.

Not done here: retries, and starting or stopping the engine; it belongs to whoever made it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import msgspec
from msgspec import Raw, Struct

from engines.base import Delta, Engine, EngineError, Event, GenerateRequest, Sampling, Usage
from router.backends.base import Facts, Order
from router.backends.mailbox import Mailbox
from router.errors import ApiError, Fault, FaultKind, invalid_request
from router.wire.chat import ChatRequest
from router.wire.completion import (
    ID_BYTES,
    ChunkEncoder,
    CompletionBuilder,
    Identity,
    OutOfOrder,
    new_id,
)
from router.wire.messages import Message, RefusalPart, TextPart
from router.wire.options import CustomTool, NamedFunction

MAX_WAITING_BYTES = 4 * 1024 * 1024
"""Events that nobody reads: some 60,000 tokens, or 1,500 with all the logprobs one can ask for."""

IGNORED: Mapping[str, str] = MappingProxyType(
    {
        "user": "book-keeping at OpenAI's; nothing in the answer depends on it",
        "metadata": "book-keeping",
        "store": "book-keeping",
        "safety_identifier": "book-keeping",
        "prompt_cache_key": "prefixes are cached without being asked",
        "prompt_cache_retention": "for as long as there is room",
        "prompt_cache_options": "likewise",
        "prediction": "makes an answer come sooner, not differently",
        "reasoning_effort": "a wish; an answer without it still answers the question",
        "verbosity": "a wish",
    }
)
"""Parameters that an engine is not told of, and why the answer is right all the same."""

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "audio": "This model answers with text only.",
        "web_search_options": "This model does not search the web.",
        "moderation": "This model does not moderate.",
        "functions": "'functions' is deprecated; use 'tools' instead.",
        "function_call": "'function_call' is deprecated; use 'tool_choice' instead.",
    }
)
"""Parameters without which the client would get something else than it asked for, and what it is told.

Likewise ``modalities`` beyond text, parts of messages that aren't text, tools that aren't functions. Every
parameter that stands in neither table is honoured.
"""

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
        self, name: str, engine: Engine, *, entropy: Callable[[int], bytes] = os.urandom
    ) -> None:
        """``entropy`` gives that many random bytes, for ids."""
        self.name = name
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
            chat = _chat(order)
            request = generate_request(order)
        except ApiError as error:
            raise Fault(FaultKind.CLIENT_ERROR, error.error.message, answer=error) from error
        if asyncio.get_running_loop().time() >= order.deadline:
            raise Fault(FaultKind.DEADLINE, "The request's time was up before its turn came.")
        answer = EngineAnswer(
            self._begin(request), order, self._writer(order, chat), self._answers.discard
        )
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

    def _begin(self, request: GenerateRequest) -> Generation:
        engine = self._engine
        try:
            if isinstance(engine, BatchingEngine):
                return engine.begin(request)
            return _Pumped(engine.generate(request))
        except EngineError as error:
            raise fault_of(error) from error

    def _writer(self, order: Order, request: ChatRequest) -> ChunkEncoder | CompletionBuilder:
        identity = Identity(
            id=new_id(self._entropy(ID_BYTES)),
            created=order.created,
            model=request.model or order.model,
            system_fingerprint=self._fingerprint,
            service_tier="default" if request.service_tier is not None else None,
        )
        n, logprobs = request.n or 1, bool(request.logprobs)
        if request.stream:
            usage = request.wants_usage
            return ChunkEncoder(identity, n=n, include_usage=usage, logprobs=logprobs)
        return CompletionBuilder(identity, n=n, logprobs=logprobs)


class EngineAnswer:
    """An answer that an engine is writing."""

    headers: Mapping[str, str] = MappingProxyType({})

    __slots__ = ("_forget", "_generation", "_head", "_loop", "_order", "_over", "_writer", "facts")

    def __init__(
        self,
        generation: Generation,
        order: Order,
        writer: ChunkEncoder | CompletionBuilder,
        forget: Callable[[EngineAnswer], None],
    ) -> None:
        self._generation = generation
        self._order = order
        self._writer = writer
        self._forget = forget
        self._loop = asyncio.get_running_loop()
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

    def close(self) -> None:
        """Cancel what still runs, at once. May be called twice."""
        self._over = True
        self._head = []
        self._generation.cancel()
        self._forget(self)

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
            raise fault_of(error) from error
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
        self.close()


class _Pumped:
    """A Generation over an engine's iterator: one task reads it into a mailbox."""

    __slots__ = ("_box", "_task")

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        loop = asyncio.get_running_loop()
        self._box: Mailbox[Event] = Mailbox(
            loop, high_water=MAX_WAITING_BYTES, on_full=self._overflow
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
        self._box.end(unread())
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


def unread() -> EngineError:
    """What a request gets whose events nobody reads."""
    return EngineError("internal", "more of the answer waits to be read than may be kept")


def fault_of(error: EngineError) -> Fault:
    """An engine's failure as the dispatcher understands it."""
    kind = _KINDS.get(error.kind)
    if kind is not None:
        return Fault(kind, error.message)
    if error.kind == "prompt_too_long":
        code = "context_length_exceeded"
        answer = invalid_request(error.message, param="messages", code=code)
    else:
        answer = invalid_request(error.message)
    return Fault(FaultKind.CLIENT_ERROR, error.message, answer=answer)


class _Spliced(Struct, frozen=True):
    """The parts of a body that go to the engine as they came."""

    messages: Raw
    tools: Raw = Raw()
    tool_choice: Raw = Raw()
    response_format: Raw = Raw()


_splice = msgspec.json.Decoder(_Spliced).decode
_text = msgspec.json.Decoder(str).decode


def generate_request(order: Order) -> GenerateRequest:
    """The engine's form of a request. Raises ApiError for what no engine here can do, naming the parameter."""
    request = _chat(order)
    _refuse(request)
    parts = _splice(order.body)
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or ()
    return GenerateRequest(
        messages=bytes(parts.messages),
        sampling=Sampling(
            temperature=request.temperature,
            top_p=request.top_p,
            frequency_penalty=request.frequency_penalty,
            presence_penalty=request.presence_penalty,
            logit_bias=request.logit_bias,
            seed=request.seed,
        ),
        max_tokens=request.output_limit,
        n=request.n or 1,
        stop=tuple(text for text in stop if text),
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
        tools=_given(parts.tools) if request.tools else None,
        tool_choice=_given(parts.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_given(parts.response_format),
    )


def _chat(order: Order) -> ChatRequest:
    if not isinstance(order.request, ChatRequest):
        raise invalid_request("This model answers chat requests only.", param="model", status=404)
    return order.request


def _given(raw: Raw) -> bytes | None:
    value = bytes(raw)
    return None if value in {b"", b"null"} else value


def _refuse(request: ChatRequest) -> None:
    for name, why in REFUSED.items():
        if getattr(request, name) is not None:
            raise _unsupported(name, why)
    if request.modalities is not None and set(request.modalities) - {"text"}:
        raise _unsupported("modalities", "This model answers with text only.")
    _refuse_parts(request.messages)
    _refuse_tools(request)


def _refuse_parts(messages: list[Message]) -> None:
    for i, message in enumerate(messages):
        if message.content is None or isinstance(message.content, str):
            continue
        for j, part in enumerate(message.content):
            if not isinstance(part, TextPart | RefusalPart):
                kind = part.__struct_config__.tag
                text = f"Invalid content type. {kind} is only supported by certain models."
                raise _unsupported(f"messages[{i}].content[{j}].type", text)


def _refuse_tools(request: ChatRequest) -> None:
    for i, tool in enumerate(request.tools or ()):
        if isinstance(tool, CustomTool):
            raise _unsupported(f"tools[{i}].type", "This model calls functions only.")
    choice = request.tool_choice
    if choice is not None and not isinstance(choice, str | NamedFunction):
        message = "This model takes 'none', 'auto', 'required' or a function's name."
        raise _unsupported("tool_choice.type", message)


def _unsupported(param: str, message: str) -> ApiError:
    return invalid_request(message, param=param, code="invalid_value")
