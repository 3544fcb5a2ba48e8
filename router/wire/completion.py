"""From an engine's events to OpenAI's answer: the chunks of a stream, or one object at the end.

Both writers are fed lists of events and give bytes back. Chunks are put together from bytes that were prepared
once per answer; only strings are encoded on the way, so a token costs one small encode and a join. Encoding a
Struct per chunk would be the obvious way and costs several times as much, for the same envelope every time.

The writers hold the engine to its contract (a role, then deltas, one finish a choice, one usage at the end): what
breaks it raises OutOfOrder, so that a cut answer can't leave here looking whole.

The Structs are what an embedder decodes answers into, this router's own and any upstream's: fields they don't
know are passed over, fields that upstreams leave out have defaults.

Source: OpenAI's published API specification, CreateChatCompletionResponse and CreateChatCompletionStreamResponse.
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec
from msgspec import Struct

from engines.base import Delta, Event, Finish, TokenLogprob, ToolCallDelta, Usage
from router.errors import ApiError
from router.wire.sse import DONE

LOWEST_LOGPROB = -9999.0
"""What OpenAI writes for a token that could not have been; JSON has no minus infinity."""

ID_BYTES = 18
"""24 characters of base64: as many as OpenAI's ids have at least, and no two alike."""


class FunctionCall(Struct, frozen=True, kw_only=True):
    """What is called."""

    name: str | None = None
    arguments: str = ""


class ToolCall(Struct, frozen=True, kw_only=True):
    """One call, whole in a completion, in pieces in chunks: the first piece of an index has the id and name."""

    index: int = 0
    id: str | None = None
    type: str | None = None
    function: FunctionCall | None = None


class TopToken(Struct, frozen=True, kw_only=True):
    """A token that could have been."""

    token: str
    logprob: float
    bytes: Sequence[int] | None = None


class ContentToken(Struct, frozen=True, kw_only=True):
    """A token that was written."""

    token: str
    logprob: float
    bytes: Sequence[int] | None = None
    top_logprobs: list[TopToken] = []


class Logprobs(Struct, frozen=True, kw_only=True):
    """Log-probabilities of a choice's tokens."""

    content: list[ContentToken] | None = None
    refusal: list[ContentToken] | None = None


class PromptTokensDetails(Struct, frozen=True, kw_only=True):
    """Of the prompt's tokens."""

    cached_tokens: int | None = 0
    audio_tokens: int | None = 0


class CompletionTokensDetails(Struct, frozen=True, kw_only=True):
    """Of the answer's tokens."""

    reasoning_tokens: int | None = 0
    audio_tokens: int | None = 0
    accepted_prediction_tokens: int | None = 0
    rejected_prediction_tokens: int | None = 0


class CompletionUsage(Struct, frozen=True, kw_only=True):
    """What the request took, in tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class CompletionMessage(Struct, frozen=True, kw_only=True):
    """The answer's text or its calls; in a chunk, what came since the last one."""

    role: str | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    """What the model thought first, where it says so; as DeepSeek and vLLM name it."""


class CompletionChoice(Struct, frozen=True, kw_only=True):
    """One answer of several."""

    index: int = 0
    message: CompletionMessage
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class ChunkChoice(Struct, frozen=True, kw_only=True):
    """A piece of one answer of several."""

    index: int = 0
    delta: CompletionMessage = CompletionMessage()
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """An answer, whole."""

    id: str = ""
    object: str = "chat.completion"
    created: int = 0
    model: str = ""
    choices: list[CompletionChoice] = []
    usage: CompletionUsage | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None


class ChatCompletionChunk(Struct, frozen=True, kw_only=True):
    """One event of a stream."""

    id: str = ""
    object: str = "chat.completion.chunk"
    created: int = 0
    model: str = ""
    choices: list[ChunkChoice] = []
    usage: CompletionUsage | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None


class Identity(Struct, frozen=True):
    """What every chunk of one answer says of itself. ``created`` in seconds since the epoch."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None = None
    service_tier: str | None = None
    """Only in answers to requests that named one."""


class OutOfOrder(ValueError):  # noqa: N818 - names the event
    """Events that the engine's contract does not allow: the answer can't be trusted to be whole."""


_encode = msgspec.json.Encoder().encode


def new_id(entropy: bytes, prefix: str = "chatcmpl-") -> str:
    """An answer's id. Raises ValueError for fewer than ID_BYTES random bytes."""
    if len(entropy) < ID_BYTES:
        raise ValueError(f"{len(entropy)} random bytes are not enough for an id")
    return prefix + base64.urlsafe_b64encode(entropy).rstrip(b"=").decode()


def error_event(error: ApiError) -> bytes:
    """The last event of a stream that went wrong after its first byte; SDKs raise what it says.

    An upstream's own body stays only where it is one line, for a second one would end the event.
    """
    body = error.body
    if b"\n" in body or b"\r" in body:
        body = ApiError(error.status, error.error).body
    return b"data: " + body + b"\n\n"


class Course:
    """How far an answer's choices have come. Every method raises OutOfOrder where it can't be."""

    __slots__ = ("_begun", "_calls", "_over", "_reasons")

    def __init__(self, n: int) -> None:
        self._begun = [False] * n
        self._reasons = [""] * n
        self._calls: list[set[int]] = [set() for _ in range(n)]
        self._over = False

    def advance(self, choice: int) -> bool:
        """A delta or finish of ``choice`` came; whether it is the first."""
        if self._over or not 0 <= choice < len(self._begun) or self._reasons[choice]:
            raise OutOfOrder(f"choice {choice} has no place here")
        first = not self._begun[choice]
        self._begun[choice] = True
        return first

    def unbegun_before(self, choice: int) -> list[int]:
        """Choices below ``choice`` that have not begun; they count as begun from now on."""
        found = [index for index in range(choice) if not self._begun[index]]
        for index in found:
            self._begun[index] = True
        return found

    def opens_call(self, choice: int, piece: ToolCallDelta) -> bool:
        """Whether ``piece`` is the first of its tool call."""
        calls = self._calls[choice]
        if piece.index in calls:
            return False
        if piece.id is None or piece.name is None:
            raise OutOfOrder(f"tool call {piece.index} begins without its id and name")
        calls.add(piece.index)
        return True

    def finish(self, event: Finish) -> bool:
        """A choice is complete; whether it never had a delta."""
        first = self.advance(event.choice)
        self._reasons[event.choice] = event.reason
        return first

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why choices were finished, those that were."""
        return tuple(filter(None, self._reasons))

    def end(self) -> None:
        """The usage came."""
        if self._over or not all(self._reasons):
            raise OutOfOrder("usage before every choice was finished, or twice")
        self._over = True


class Writer(Protocol):
    """Turns an engine's events into an answer's bytes."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why choices were finished, those that were."""

    def feed(self, events: Iterable[Event]) -> bytes:
        """What is to be sent now that ``events`` have come; maybe nothing. Raises OutOfOrder."""


class StreamWriter(ABC):
    """What every stream has: one event after another, at the end usage (if wanted) and [DONE]."""

    __slots__ = ("_course", "_end", "_envelope", "_usage")

    def __init__(self, identity: Identity, kind: bytes, *, n: int, include_usage: bool) -> None:
        self._course = Course(n)
        self._usage = include_usage
        self._envelope = b"data: " + head(identity, kind) + b',"choices":['
        self._end = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    @property
    def reasons(self) -> tuple[str, ...]:
        """See `Course.reasons`."""
        return self._course.reasons

    def feed(self, events: Iterable[Event]) -> bytes:
        """Whole events of the stream, ``b""`` where nothing is to be said. Raises OutOfOrder."""
        pieces: list[bytes] = []
        for event in events:
            if isinstance(event, Delta):
                self._write_delta(event, pieces)
            elif isinstance(event, Finish):
                self._write_finish(event, pieces)
            else:
                self._write_end(event, pieces)
        return b"".join(pieces)

    @abstractmethod
    def _write_delta(self, event: Delta, pieces: list[bytes]) -> None:
        """Add a delta's chunks to ``pieces``."""

    @abstractmethod
    def _write_finish(self, event: Finish, pieces: list[bytes]) -> None:
        """Add a choice's last chunk to ``pieces``."""

    def _write_end(self, event: Usage, pieces: list[bytes]) -> None:
        self._course.end()
        if self._usage:
            pieces += (self._envelope, b'],"usage":', _encode(usage_of(event)), b"}\n\n")
        pieces.append(DONE)


class ChunkEncoder(StreamWriter):
    """Writes a stream: a role chunk a choice, its deltas, its finish."""

    __slots__ = ("_content", "_delta", "_finish", "_logprobs", "_role", "_tail")

    def __init__(
        self, identity: Identity, *, n: int = 1, include_usage: bool = False, logprobs: bool = False
    ) -> None:
        super().__init__(identity, b"chat.completion.chunk", n=n, include_usage=include_usage)
        self._logprobs = logprobs
        self._tail = b',"finish_reason":null}' + self._end
        self._finish = b'"}' + self._end
        self._delta = [self._envelope + b'{"index":%d,"delta":' % index for index in range(n)]
        self._content = [delta + b'{"content":' for delta in self._delta]
        self._role = (
            b'{"role":"assistant","content":%b,"refusal":null},"logprobs":null' + self._tail
        )

    def _write_delta(self, event: Delta, pieces: list[bytes]) -> None:
        choice = event.choice
        if self._course.advance(choice):
            self._introduce(choice, pieces)
            # A choice that calls has no content, not an empty one: what an SDK adds up equals the whole answer.
            silent = event.tool_calls and not event.text
            pieces += (self._delta[choice], self._role % (b"null" if silent else b'""'))
        if event.reasoning:
            pieces += (self._delta[choice], b'{"reasoning_content":', _encode(event.reasoning))
            pieces += (b'},"logprobs":null', self._tail)
        if event.text or (event.logprobs and not event.tool_calls):
            shown = self._logprobs and event.logprobs
            logprobs = _encode(_logprobs(event.logprobs)) if shown else b"null"
            content = self._content[choice]
            pieces += (content, _encode(event.text), b'},"logprobs":', logprobs, self._tail)
        for piece in event.tool_calls:
            self._write_call(choice, piece, pieces)

    def _introduce(self, choice: int, pieces: list[bytes]) -> None:
        """Role chunks of the choices before ``choice``: OpenAI's SDK can't add choices up that begin out of order."""
        if choice:
            for index in self._course.unbegun_before(choice):
                pieces += (self._delta[index], self._role % b'""')

    def _write_call(self, choice: int, piece: ToolCallDelta, pieces: list[bytes]) -> None:
        head = self._delta[choice] + b'{"tool_calls":[{"index":%d,' % piece.index
        tail = b'}}]},"logprobs":null' + self._tail
        if self._course.opens_call(choice, piece):
            name = b'","type":"function","function":{"name":%b,"arguments":""' % _encode(piece.name)
            pieces += (head, b'"id":', _encode(piece.id)[:-1], name, tail)
        if piece.arguments:
            pieces += (head, b'"function":{"arguments":', _encode(piece.arguments), tail)

    def _write_finish(self, event: Finish, pieces: list[bytes]) -> None:
        choice = event.choice
        if self._course.finish(event):
            self._introduce(choice, pieces)
            pieces += (self._delta[choice], self._role % b'""')
        reason = b'{},"logprobs":null,"finish_reason":"' + event.reason.encode()
        pieces += (self._delta[choice], reason, self._finish)


class Draft:
    """One choice while it grows."""

    __slots__ = ("arguments", "calls", "logprobs", "reason", "reasoning", "text")

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.calls: dict[int, ToolCallDelta] = {}
        self.arguments: dict[int, list[str]] = {}
        self.reason = ""

    def json(self, index: int, *, logprobs: bool) -> bytes:
        """The choice as OpenAI writes it."""
        text = "".join(self.text)
        content = b"null" if self.calls and not text else _encode(text)
        shown = _encode(_logprobs(self.logprobs)) if logprobs and self.logprobs else b"null"
        return (
            b'{"index":%d,"message":{"role":"assistant","content":%b,"refusal":null%b%b},'
            b'"logprobs":%b,"finish_reason":"%b"}'
        ) % (index, content, self._thought(), self._calls_json(), shown, self.reason.encode())

    def _thought(self) -> bytes:
        thought = "".join(self.reasoning)
        return b',"reasoning_content":' + _encode(thought) if thought else b""

    def _calls_json(self) -> bytes:
        if not self.calls:
            return b""
        calls = [
            b'{"id":%b,"type":"function","function":{"name":%b,"arguments":%b}}'
            % (_encode(call.id), _encode(call.name), _encode("".join(self.arguments[index])))
            for index, call in sorted(self.calls.items())
        ]
        return b',"tool_calls":[%b]' % b",".join(calls)


class WholeWriter(ABC):
    """Gathers an answer and writes it as one object once its usage has come."""

    __slots__ = ("_course", "_drafts", "_identity", "_logprobs")

    def __init__(self, identity: Identity, *, n: int = 1, logprobs: bool = False) -> None:
        self._identity = identity
        self._logprobs = logprobs
        self._course = Course(n)
        self._drafts = [Draft() for _ in range(n)]

    @property
    def reasons(self) -> tuple[str, ...]:
        """See `Course.reasons`."""
        return self._course.reasons

    def feed(self, events: Iterable[Event]) -> bytes:
        """``b""`` until the usage comes, then the whole object. Raises OutOfOrder."""
        for event in events:
            if isinstance(event, Delta):
                self._course.advance(event.choice)
                self._take(event)
            elif isinstance(event, Finish):
                self._course.finish(event)
                self._drafts[event.choice].reason = event.reason
            else:
                self._course.end()
                return self._json(event)
        return b""

    @abstractmethod
    def _take(self, event: Delta) -> None:
        """Add a delta to its choice's draft."""

    @abstractmethod
    def _json(self, usage: Usage) -> bytes:
        """The answer."""


class CompletionBuilder(WholeWriter):
    """Gathers a chat completion."""

    __slots__ = ()

    def _take(self, event: Delta) -> None:
        draft = self._drafts[event.choice]
        draft.text.append(event.text)
        draft.reasoning.append(event.reasoning)
        if not event.tool_calls or event.text:
            draft.logprobs += event.logprobs
        for piece in event.tool_calls:
            if self._course.opens_call(event.choice, piece):
                draft.calls[piece.index] = piece
                draft.arguments[piece.index] = []
            draft.arguments[piece.index].append(piece.arguments)

    def _json(self, usage: Usage) -> bytes:
        choices = b",".join(
            draft.json(index, logprobs=self._logprobs) for index, draft in enumerate(self._drafts)
        )
        start = head(self._identity, b"chat.completion")
        return start + b',"choices":[%b],"usage":%b}' % (choices, _encode(usage_of(usage)))


def head(identity: Identity, kind: bytes) -> bytes:
    """How every object of one answer begins, its brace open. ``kind`` is what it calls itself."""
    tier = b',"service_tier":' + _encode(identity.service_tier) if identity.service_tier else b""
    return b'{"id":%b,"object":"%b","created":%d,"model":%b%b,"system_fingerprint":%b' % (
        _encode(identity.id),
        kind,
        identity.created,
        _encode(identity.model),
        tier,
        _encode(identity.system_fingerprint),
    )


def _logprobs(tokens: Sequence[TokenLogprob]) -> Logprobs:
    content = [
        ContentToken(
            token=token.token,
            logprob=max(LOWEST_LOGPROB, token.logprob),
            bytes=token.bytes,
            top_logprobs=[
                TopToken(token=top.token, logprob=max(LOWEST_LOGPROB, top.logprob), bytes=top.bytes)
                for top in token.top
            ],
        )
        for token in tokens
    ]
    return Logprobs(content=content)


def usage_of(usage: Usage) -> CompletionUsage:
    """An engine's usage as OpenAI writes it."""
    return CompletionUsage(
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
        total_tokens=usage.input_tokens + usage.output_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_input_tokens),
        completion_tokens_details=CompletionTokensDetails(),
    )
