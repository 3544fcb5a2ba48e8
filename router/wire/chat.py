"""A chat-completions request: every parameter that OpenAI publishes, as one Struct, decoded in one pass.

Ranges and types stand in the annotations and msgspec checks them while decoding; what one field means for another
is in `rules`, what msgspec lets through in `jsontext`, and the words of every refusal in `violations`. ``null`` is
unset, everywhere but where OpenAI says otherwise.

Source: OpenAI's published API specification, CreateChatCompletionRequest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Annotated, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import force_setattr

from router.errors import ApiError, invalid_request
from router.wire import jsontext, outline, rules, violations
from router.wire.messages import JsonObject, Message
from router.wire.operation import Operation
from router.wire.options import (
    Audio,
    Function,
    Named,
    Prediction,
    ResponseFormat,
    StreamOptions,
    Tool,
    ToolChoice,
    WebSearch,
)

Temperature = Annotated[float, Meta(ge=0, le=2)]
Unit = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Choices = Annotated[int, Meta(ge=1, le=128)]
Stop = str | Annotated[list[str], Meta(min_length=1, max_length=4)]
LogitBias = dict[str, float]
Metadata = Annotated[dict[str, str], Meta(max_length=16)]


class ChatRequest(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """The whole request. Names, ranges and defaults are OpenAI's."""

    operation: ClassVar[Operation] = Operation.CHAT

    model: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: Unit | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    n: Choices | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Meta(min_length=1, max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    user: str | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    prediction: Prediction | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Meta(min_length=1)] | None = None
    audio: Audio | None = None
    safety_identifier: Annotated[str, Meta(max_length=64)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: JsonObject | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    web_search_options: WebSearch | None = None
    moderation: JsonObject | None = None
    functions: Annotated[list[Function], Meta(min_length=1, max_length=128)] | None = None
    function_call: Literal["none", "auto"] | Named | None = None

    @property
    def wants_usage(self) -> bool:
        """A stream whose client asked for the usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def output_limit(self) -> int | None:
        """Most tokens the client wants written, per choice."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def output_limit_name(self) -> str:
        """The parameter that sets it."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def choices(self) -> int:
        """How many answers come."""
        return self.n or 1


class LooseChatRequest(ChatRequest, frozen=True, forbid_unknown_fields=False):
    """A request with fields of other dialects, which some provider takes. They are in its bytes alone."""


class LongChatRequest(ChatRequest, frozen=True):
    """A request of which it is known where in its body the messages are."""

    messages: list[Message]
    messages_at: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET
    """From where to where; unset where the body isn't the client's any more."""


LONG_BYTES = 16 * 1024
"""From here on it pays to decode the messages by themselves: looking twice at the rest costs as much as 4 KiB."""

Request = TypeVar("Request", bound=Struct)
_outlines: msgspec.json.Decoder[LongChatRequest] = msgspec.json.Decoder(LongChatRequest)
_messages: msgspec.json.Decoder[list[Message]] = msgspec.json.Decoder(
    Annotated[list[Message], Meta(min_length=1)]
)
_strict: msgspec.json.Decoder[ChatRequest] = msgspec.json.Decoder(ChatRequest)
_loose: msgspec.json.Decoder[ChatRequest] = msgspec.json.Decoder(LooseChatRequest)


def decode_chat(body: bytes, extra_fields: Collection[str] = ()) -> ChatRequest:
    """The request in ``body``. Raises ApiError with OpenAI's status, message, param and code.

    A field that OpenAI doesn't know is refused unless it is one of ``extra_fields``.
    """
    if len(body) >= LONG_BYTES:
        request = _decode_long(body)
        if request is not None:
            return request
    return decode(body, _strict, _loose if extra_fields else None, rules.check, extra_fields)


def _decode_long(body: bytes) -> LongChatRequest | None:
    """The request, if its messages are where they usually are and nothing is wrong with types. Raises ApiError."""
    at = outline.messages_at(body)
    if at is None:
        return None
    around = outline.around(body, at)
    start, end = at
    try:
        request = _outlines.decode(around)
        if request.messages or request.messages_at is not msgspec.UNSET:
            return None
        messages = _messages.decode(memoryview(body)[start:end])
        force_setattr(request, "messages", messages)
        force_setattr(request, "messages_at", at)
        rules.check_long(request, body, around)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # The usual way says what is wrong with it.
    return request


def decode(
    body: bytes,
    strict: msgspec.json.Decoder[Request],
    loose: msgspec.json.Decoder[Request] | None,
    check: Callable[[Request, bytes], None],
    extra_fields: Collection[str],
) -> Request:
    """What ``body`` says, checked: by ``strict``, or by ``loose`` where its unknown fields are ``extra_fields``.

    Raises ApiError.
    """
    try:
        try:
            request = strict.decode(body)
        except msgspec.ValidationError as error:
            if loose is None or not violations.is_unknown_field(error):
                raise
            request = loose.decode(body)
            _refuse_unknown(body, request, extra_fields)
        check(request, body)
    except msgspec.ValidationError as error:
        raise violations.translate(error, body) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise violations.not_json() from error
    return request


def _refuse_unknown(body: bytes, request: Struct, extra_fields: Collection[str]) -> None:
    for name in unknown_fields(request, body):
        if name not in extra_fields:
            raise violations.unknown_field(name)


def unknown_fields(request: Struct, body: bytes) -> list[str]:
    """The fields of ``body``, which ``request`` was decoded from, that OpenAI doesn't know."""
    if request.__struct_config__.forbid_unknown_fields:
        return []
    return [name for name in jsontext.fields(body) if name not in request.__struct_fields__]


def unknown_model(name: str) -> ApiError:
    """404, as OpenAI says it."""
    message = f"The model `{name}` does not exist or you do not have access to it."
    return invalid_request(message, code="model_not_found", status=404)
