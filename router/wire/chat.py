"""A chat-completions request: every parameter that OpenAI publishes, as one Struct, decoded in one pass.

Ranges and types stand in the annotations and msgspec checks them while decoding; what one field means for another
is checked in `check`. What only an upstream reads (tools, schema, audio, ...) is checked to be JSON of the right
kind and otherwise left as raw bytes. ``null`` is unset, everywhere.

Source: OpenAI's published API specification, CreateChatCompletionRequest.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from router.errors import ApiError, invalid_request
from router.wire import violations

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
Unit = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
JsonObject = dict[str, Raw]


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    """Text."""

    text: str


class RefusalPart(Struct, frozen=True, tag_field="type", tag="refusal"):
    """A refusal of an earlier answer."""

    refusal: str


class ImagePart(Struct, frozen=True, tag_field="type", tag="image_url"):
    """An image, by URL or inline; the router never fetches it."""

    image_url: JsonObject


class AudioPart(Struct, frozen=True, tag_field="type", tag="input_audio"):
    """Audio, inline."""

    input_audio: JsonObject


class FilePart(Struct, frozen=True, tag_field="type", tag="file"):
    """A file, by id or inline."""

    file: JsonObject


Part = TextPart | RefusalPart | ImagePart | AudioPart | FilePart


class CalledFunction(Struct, frozen=True):
    """What an earlier answer called."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True):
    """A tool call of an earlier answer."""

    id: str
    function: CalledFunction | None = None
    type: str = "function"


class Message(Struct, frozen=True):
    """One message; fields of other dialects (reasoning_content, ...) pass through to upstreams."""

    role: Role
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class StreamOptions(Struct, frozen=True):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(
    Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """The whole request. Names, ranges and defaults are OpenAI's."""

    model: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Unit | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    response_format: JsonObject | None = None
    tools: Annotated[list[JsonObject], Meta(max_length=128)] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool = True
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    reasoning_effort: str | None = None
    prediction: JsonObject | None = None
    modalities: list[str] | None = None
    audio: JsonObject | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    verbosity: str | None = None
    web_search_options: JsonObject | None = None
    functions: list[JsonObject] | None = None
    function_call: str | JsonObject | None = None

    @property
    def wants_usage(self) -> bool:
        """A stream whose client asked for the usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def output_limit(self) -> int | None:
        """Most tokens the client wants written; the newer name wins."""
        return self.max_completion_tokens or self.max_tokens


_decoder = msgspec.json.Decoder(ChatRequest)


def decode_chat(body: bytes) -> ChatRequest:
    """The request in ``body``. Raises ApiError with OpenAI's status, message, param and code."""
    try:
        request = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise violations.translate(error, body) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise violations.not_json() from error
    except RecursionError as error:
        raise violations.not_json() from error
    check(request)
    return request


def check(request: ChatRequest) -> None:
    """What one parameter means for another. Raises ApiError."""
    if request.model is None or not request.model:
        raise invalid_request("you must provide a model parameter")
    if request.stream_options is not None and not request.stream:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise invalid_request(message, param="stream_options")
    if request.top_logprobs is not None and not request.logprobs:
        message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
        raise invalid_request(message, param="top_logprobs")
    if request.tool_choice is not None and not request.tools:
        message = "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified."
        raise invalid_request(message, param="tool_choice")
    if request.logit_bias:
        _check_logit_bias(request.logit_bias)


def _check_logit_bias(bias: dict[str, float]) -> None:
    for key in bias:
        if not (key.isascii() and key.isdigit()):
            message = (
                f"Invalid key in 'logit_bias': {key}. "
                "You should only be submitting non-negative integers."
            )
            raise invalid_request(message, param="logit_bias")


def unknown_model(name: str) -> ApiError:
    """404, as OpenAI says it."""
    message = f"The model `{name}` does not exist or you do not have access to it."
    return invalid_request(message, code="model_not_found", status=404)
