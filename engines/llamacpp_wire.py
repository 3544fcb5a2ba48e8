"""What is said to llama.cpp's chat endpoint and what it answers, as data. Pure.

Its body is OpenAI's with more fields. Every sampler is set, since llama.cpp's own values
(temperature 0.8, top_k 40, min_p 0.05) are not neutral and a GGUF file may bring yet others.
Messages, tools and schemas are spliced in as the bytes they came in.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from engines.base import (
    Delta,
    EngineError,
    Event,
    Finish,
    FinishReason,
    GenerateRequest,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
)
from engines.forced_tools import CallWriter, ForcedCall, force, offered

_RANDOM_SEED = 0xFFFFFFFF
"""llama.cpp's seeds have 32 bits, and this one asks for a random one."""

_IMPOSSIBLE_LOGPROB = -9999.0
"""What OpenAI says for a token without probability; llama.cpp says null."""


_VALUES = ("const", "enum", "default", "examples")
"""Keys of a schema under which stand values, not schemas."""


class _StreamOptions(Struct, frozen=True):
    include_usage: bool = True


class _Body(Struct, frozen=True, kw_only=True):
    messages: Raw
    n: int
    temperature: float
    top_p: float
    frequency_penalty: float
    presence_penalty: float
    repeat_last_n: int
    """Tokens the two penalties look back on; llama.cpp's own 64 would forget."""
    seed: int
    max_tokens: int | UnsetType = UNSET
    logit_bias: dict[str, float] | UnsetType = UNSET
    stop: tuple[str, ...] | UnsetType = UNSET
    logprobs: bool | UnsetType = UNSET
    top_logprobs: int | UnsetType = UNSET
    tools: Raw | UnsetType = UNSET
    tool_choice: str | UnsetType = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET
    response_format: Raw | dict[str, Any] | UnsetType = UNSET
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    stream: bool = True
    stream_options: _StreamOptions = _StreamOptions()
    return_progress: bool = True
    """Without it the callback, and with it a cancel, has no turn before the first token."""


class Part(Struct, frozen=True):
    """One call of llama.cpp: some or all choices of a request."""

    body: bytes
    first_choice: int
    choices: int


_encoder = msgspec.json.Encoder()


def parts(
    request: GenerateRequest, forced: ForcedCall | None, slots: int, context_tokens: int
) -> list[Part]:
    """Return the calls that make up a request: llama.cpp refuses more choices than it has slots.

    Raises EngineError for what llama.cpp would misread.
    """
    if request.max_tokens is not None and request.max_tokens < 1:
        raise EngineError("invalid", f"max_tokens must be at least 1, not {request.max_tokens}")
    spans = [(first, min(slots, request.n - first)) for first in range(0, request.n, slots)]
    return [Part(_body(request, forced, span, context_tokens), *span) for span in spans]


def forced_call(request: GenerateRequest) -> ForcedCall | None:
    """Return the tool call that the answer must be, if any. Raises EngineError."""
    return force(request.tools, request.tool_choice)


def _body(
    request: GenerateRequest, forced: ForcedCall | None, span: tuple[int, int], context_tokens: int
) -> bytes:
    first, count = span
    sampling = request.sampling
    with_tools = offered(request.tools, request.tool_choice)
    body = _Body(
        messages=Raw(request.messages),
        n=count,
        temperature=1.0 if sampling.temperature is None else sampling.temperature,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
        frequency_penalty=sampling.frequency_penalty or 0.0,
        presence_penalty=sampling.presence_penalty or 0.0,
        repeat_last_n=context_tokens,
        seed=_RANDOM_SEED if sampling.seed is None else (sampling.seed + first) % _RANDOM_SEED,
        max_tokens=UNSET if request.max_tokens is None else request.max_tokens,
        logit_bias=sampling.logit_bias or UNSET,
        stop=request.stop if request.stop and forced is None else UNSET,
        logprobs=True if request.logprobs and forced is None else UNSET,
        top_logprobs=request.top_logprobs if request.logprobs and forced is None else UNSET,
        tools=Raw(request.tools) if with_tools and request.tools is not None else UNSET,
        tool_choice="auto" if with_tools else UNSET,
        parallel_tool_calls=request.parallel_tool_calls if with_tools else UNSET,
        response_format=_format(request, forced),
    )
    return _encoder.encode(body)


def _format(
    request: GenerateRequest, forced: ForcedCall | None
) -> Raw | dict[str, Any] | UnsetType:
    if forced is not None:
        schema = {"name": "call", "strict": True, "schema": forced.schema}
        _refuse_loose_patterns(forced.schema)
        return {"type": "json_schema", "json_schema": schema}
    if request.response_format is None:
        return UNSET
    try:
        _refuse_loose_patterns(msgspec.json.decode(request.response_format))
    except msgspec.MsgspecError as error:
        raise EngineError("invalid", f"response_format: {error}") from error
    return Raw(request.response_format)


def _refuse_loose_patterns(schema: Any) -> None:
    """Refuse what llama.cpp would let pass as any string: patterns not anchored at both ends."""
    if isinstance(schema, list):
        for item in schema:
            _refuse_loose_patterns(item)
    elif isinstance(schema, dict):
        pattern = schema.get("pattern")
        if isinstance(pattern, str) and not (pattern.startswith("^") and pattern.endswith("$")):
            raise EngineError("unsupported", f"the pattern {pattern!r} must be anchored: ^...$")
        for key, value in schema.items():
            if key not in _VALUES:
                _refuse_loose_patterns(value)


class _Function(Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct):
    index: int = 0
    id: str | None = None
    function: _Function = _Function()


class _Delta(Struct):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _TopLogprob(Struct):
    token: str
    logprob: float | None = None
    bytes: tuple[int, ...] | None = None


class _TokenLogprob(Struct):
    token: str
    logprob: float | None = None
    bytes: tuple[int, ...] | None = None
    top_logprobs: list[_TopLogprob] = []


class _Logprobs(Struct):
    content: list[_TokenLogprob] | None = None


class _Choice(Struct):
    index: int
    delta: _Delta
    finish_reason: FinishReason | None = None
    logprobs: _Logprobs | None = None


class _Cached(Struct, frozen=True):
    cached_tokens: int = 0


class _Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Cached = _Cached()


class _Progress(Struct):
    total: int
    processed: int


class _Error(Struct):
    message: str
    code: int = 500
    type: str = ""
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class _Chunk(Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    prompt_progress: _Progress | None = None
    error: _Error | None = None


_decoder = msgspec.json.Decoder(_Chunk)


class ChunkReader:
    """Turns the chunks of one call into events and keeps its counts."""

    def __init__(self, part: Part, forced: ForcedCall | None) -> None:
        self._first = part.first_choice
        self._writers = (
            None if forced is None else [CallWriter(forced) for _ in range(part.choices)]
        )
        self._unfinished = part.choices
        self.input_tokens = 0
        self.output_tokens = 0
        self.cached_tokens: int | None = None
        """The choice that found least; the others found its prompt."""
        self.kv_tokens = 0
        """Roughly, what the call holds in the cache at the moment."""

    @property
    def complete(self) -> bool:
        """Whether every choice has ended."""
        return self._unfinished == 0

    def read(self, data: bytes) -> list[Event]:
        """Return the events of one chunk. Raises EngineError for an error or an unknown shape."""
        try:
            chunk = _decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise EngineError("internal", f"llama.cpp sent an unknown chunk: {error}") from error
        if chunk.error is not None:
            raise _failure(chunk.error)
        if chunk.prompt_progress is not None:
            self.kv_tokens = max(self.kv_tokens, chunk.prompt_progress.processed)
        if chunk.usage is not None:
            self._count(chunk.usage)
        events: list[Event] = []
        for choice in chunk.choices:
            self._read_choice(choice, events)
        return events

    def _count(self, usage: _Usage) -> None:
        cached = usage.prompt_tokens_details.cached_tokens
        self.input_tokens = max(self.input_tokens, usage.prompt_tokens)
        self.output_tokens += usage.completion_tokens
        self.cached_tokens = (
            cached if self.cached_tokens is None else min(self.cached_tokens, cached)
        )

    def _read_choice(self, choice: _Choice, events: list[Event]) -> None:
        index = self._first + choice.index
        text = choice.delta.content or ""
        calls = tuple(_call(call) for call in choice.delta.tool_calls or ())
        if self._writers is not None and text:
            calls, text = self._writers[choice.index].feed(text), ""
        logprobs: tuple[TokenLogprob, ...] = ()
        if choice.logprobs is not None and choice.logprobs.content:
            logprobs = tuple(_logprob(token) for token in choice.logprobs.content)
        if text or calls or logprobs:
            self.kv_tokens += 1
            events.append(Delta(index, text, calls, logprobs))
        if choice.finish_reason is not None:
            self._unfinished -= 1
            events.append(Finish(index, self._reason(choice.finish_reason)))

    def _reason(self, reason: FinishReason) -> FinishReason:
        return "tool_calls" if self._writers is not None and reason == "stop" else reason


def _call(call: _ToolCall) -> ToolCallDelta:
    return ToolCallDelta(call.index, call.id, call.function.name, call.function.arguments or "")


def _logprob(token: _TokenLogprob) -> TokenLogprob:
    top = tuple(TopLogprob(t.token, _finite(t.logprob), t.bytes) for t in token.top_logprobs)
    return TokenLogprob(token.token, _finite(token.logprob), token.bytes, top)


def _finite(logprob: float | None) -> float:
    return _IMPOSSIBLE_LOGPROB if logprob is None else logprob


def _failure(error: _Error) -> EngineError:
    if error.type == "exceed_context_size_error":
        return EngineError(
            "prompt_too_long",
            f"the prompt has {error.n_prompt_tokens} tokens; the context holds {error.n_ctx}",
        )
    if error.code == 503:
        return EngineError("busy", error.message)
    return refusal(error.message) if error.code < 500 else EngineError("internal", error.message)


def refusal(message: str) -> EngineError:
    """Return the error for what llama.cpp refused at once: the request's fault, in its words."""
    if "not supported" in message:
        return EngineError("unsupported", message)
    return EngineError("invalid", message)
