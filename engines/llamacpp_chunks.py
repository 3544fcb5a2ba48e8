"""What llama.cpp's server answers, as data: a chunk's JSON becomes events. Pure.

Its chat endpoint and its completions endpoint answer alike, the one with deltas and tool calls, the other with bare
text; both come through here. Calls that this package forced or reads itself are cut out of the text here.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from engines.base import (
    Delta,
    EngineError,
    Event,
    Finish,
    FinishReason,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from engines.choice_writer import ChoiceWriter, Form
from engines.forced_tools import ForcedCall, new_call_id
from engines.stop_text import Tokens

_IMPOSSIBLE_LOGPROB = -9999.0
"""What OpenAI says for a token without probability; llama.cpp says null."""


class Reading(Struct, frozen=True):
    """How one call's chunks are to be read."""

    first_choice: int = 0
    choices: int = 1
    forced: ForcedCall | None = None
    tagged: bool = False
    """Calls stand in the text, in tags."""
    stop: tuple[str, ...] = ()
    """Stop strings; llama.cpp isn't told of them. It would drop tokens of text that waited, and at the limit of
    tokens the text, too."""
    logprobs: bool = False
    top_logprobs: int = 0


class _Function(Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct, frozen=True):
    index: int = 0
    id: str | None = None
    function: _Function = _Function()


class _Delta(Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _TopLogprob(Struct, frozen=True):
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
    delta: _Delta = _Delta()
    text: str = ""
    finish_reason: FinishReason | None = None
    logprobs: _Logprobs | None = None


class _Cached(Struct, frozen=True):
    cached_tokens: int = 0


class _Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Cached = _Cached()


class _Timings(Struct):
    cache_n: int = 0
    prompt_n: int = 0
    predicted_n: int = 0


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
    timings: _Timings | None = None
    prompt_progress: _Progress | None = None
    error: _Error | None = None


_decoder = msgspec.json.Decoder(_Chunk)


class ChunkReader:
    """Turns the chunks of one call into events and keeps its counts."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        form = Form(reading.stop, reading.forced, reading.tagged)
        self._writers = [ChoiceWriter(form) for _ in range(reading.choices)]
        self._finished: set[int] = set()
        self._last = 0
        self._counts: dict[int, Usage] = {}
        self.kv_tokens = 0
        """Roughly, what the call holds in the cache at the moment."""

    @property
    def usage(self) -> Usage:
        """What the call took so far: the prompt once, of its cached tokens the choice that found least."""
        counts = self._counts.values()
        return Usage(
            max((count.input_tokens for count in counts), default=0),
            sum(count.output_tokens for count in counts),
            min((count.cached_input_tokens for count in counts), default=0),
        )

    @property
    def complete(self) -> bool:
        """Whether every choice has ended; llama.cpp may not know it yet."""
        return len(self._finished) == self._reading.choices

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
        events: list[Event] = []
        for choice in chunk.choices:
            self._last = choice.index
            if choice.index not in self._finished:
                self._count_so_far(chunk.timings)
                self._read_choice(choice, events)
        if chunk.usage is not None:
            self._count(chunk.usage)
        return events

    def _count(self, usage: _Usage) -> None:
        """Count the choice that ended last, unless a stop string ended it before llama.cpp did."""
        if not self._writers[self._last].stopped:
            cached = usage.prompt_tokens_details.cached_tokens
            self._counts[self._last] = Usage(usage.prompt_tokens, usage.completion_tokens, cached)

    def _count_so_far(self, timings: _Timings | None) -> None:
        """Count a choice that may end by a stop string, and so never say its usage."""
        if timings is not None:
            self._counts[self._last] = Usage(
                timings.cache_n + timings.prompt_n, timings.predicted_n, timings.cache_n
            )

    def _read_choice(self, choice: _Choice, events: list[Event]) -> None:
        index = self._reading.first_choice + choice.index
        writer = self._writers[choice.index]
        delta = self._delta(choice, writer)
        if delta.text or delta.tool_calls or delta.reasoning:
            self.kv_tokens += 1
            events.append(replace(delta, choice=index))
        reason = "stop" if writer.stopped else choice.finish_reason
        if reason is None:
            return
        rest = writer.flush()
        if rest.text:
            events.append(replace(rest, choice=index))
        self._finished.add(choice.index)
        events.append(Finish(index, self._reason(reason, writer)))

    def _delta(self, choice: _Choice, writer: ChoiceWriter) -> Delta:
        text = choice.delta.content or choice.text
        calls = tuple(_call(call) for call in choice.delta.tool_calls or ())
        tokens: Tokens = ()
        if self._reading.logprobs and text and choice.logprobs is not None:
            content = choice.logprobs.content or ()
            tokens = tuple(_logprob(token, self._reading.top_logprobs) for token in content)
        if not text:
            return Delta(0, "", calls, (), choice.delta.reasoning_content or "")
        delta = writer.feed(text, tokens)
        return replace(
            delta,
            tool_calls=calls + delta.tool_calls,
            reasoning=choice.delta.reasoning_content or "",
        )

    def _reason(self, reason: FinishReason, writer: ChoiceWriter) -> FinishReason:
        if reason != "stop":
            return reason
        if self._reading.forced is not None:
            return self._reading.forced.reason
        return "tool_calls" if writer.called else "stop"


def _call(call: _ToolCall) -> ToolCallDelta:
    id_ = None if call.id is None else new_call_id()
    return ToolCallDelta(call.index, id_, call.function.name, call.function.arguments or "")


def _logprob(token: _TokenLogprob, top_count: int) -> TokenLogprob:
    top = tuple(
        TopLogprob(t.token, _finite(t.logprob), t.bytes) for t in token.top_logprobs[:top_count]
    )
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
