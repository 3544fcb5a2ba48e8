"""The messages of a chat request, as Structs: roles, parts of content, tool calls of earlier answers.

Only what OpenAI's schema fixes is typed. Fields beyond it (reasoning_content, cache_control, ...) are passed over
here and reach an upstream in the body's own bytes.

Source: OpenAI's published API specification, ChatCompletionRequestMessage.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
JsonObject = dict[str, Raw]
MAX_NAME = 64
"""Characters of a function's name, and of a schema's; OpenAI's number."""
NAME_PATTERN = "^[a-zA-Z0-9_-]+$"
FunctionName = Annotated[str, Meta(pattern=NAME_PATTERN, max_length=MAX_NAME)]
"""A line end after the name would slip through ``$``; `rules` looks for it."""
PersonName = Annotated[str, Meta(pattern=r"^[^\s<|\\/>]+$", max_length=MAX_NAME)]
"""Who speaks; these characters could end the name in a prompt."""


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    """Text."""

    text: str


class RefusalPart(Struct, frozen=True, tag_field="type", tag="refusal"):
    """A refusal of an earlier answer."""

    refusal: str


class ImageUrl(Struct, frozen=True):
    """Where an image is, or the image itself as a data URL."""

    url: str
    detail: str | None = None


class ImagePart(Struct, frozen=True, tag_field="type", tag="image_url"):
    """An image; the router never fetches it."""

    image_url: ImageUrl


class InputAudio(Struct, frozen=True):
    """Audio as base64."""

    data: str
    format: Literal["wav", "mp3"]


class AudioPart(Struct, frozen=True, tag_field="type", tag="input_audio"):
    """Audio, inline."""

    input_audio: InputAudio


class FilePart(Struct, frozen=True, tag_field="type", tag="file"):
    """A file, by id or inline."""

    file: JsonObject


Part = TextPart | RefusalPart | ImagePart | AudioPart | FilePart


class CalledFunction(Struct, frozen=True):
    """What an earlier answer called, with its arguments as the model wrote them: JSON or nearly."""

    name: FunctionName
    arguments: str


class FunctionCall(Struct, frozen=True, tag_field="type", tag="function"):
    """A function call of an earlier answer."""

    id: str
    function: CalledFunction


class CustomInput(Struct, frozen=True):
    """What an earlier answer gave to a custom tool."""

    name: str
    input: str


class CustomCall(Struct, frozen=True, tag_field="type", tag="custom"):
    """A custom tool's call of an earlier answer."""

    id: str
    custom: CustomInput


ToolCall = FunctionCall | CustomCall


class Message(Struct, frozen=True):
    """One message. What each role must have is checked in `rules`."""

    role: Role
    content: str | Annotated[list[Part], Meta(min_length=1)] | None = None
    name: PersonName | None = None
    tool_calls: Annotated[list[ToolCall], Meta(min_length=1)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    audio: JsonObject | None = None
    function_call: CalledFunction | None = None
