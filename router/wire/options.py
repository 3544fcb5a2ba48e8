"""The structured parameters of a chat request: tools, tool_choice, response_format, audio, prediction, ...

Schemas inside them stay raw: only their outermost shape is fixed here; what OpenAI asks of a strict one is in
`strict_schema`.

Source: OpenAI's published API specification: ChatCompletionTool, ChatCompletionToolChoiceOption, ResponseFormat*.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from router.wire.messages import FunctionName, JsonObject, TextPart


class StreamOptions(Struct, frozen=True):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Function(Struct, frozen=True):
    """A function that the model may call. ``parameters`` is a JSON schema."""

    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class FunctionTool(Struct, frozen=True, tag_field="type", tag="function"):
    """A tool that is a function."""

    function: Function


class CustomDefinition(Struct, frozen=True):
    """A tool that takes any text."""

    name: FunctionName
    description: str | None = None
    format: JsonObject | None = None


class CustomTool(Struct, frozen=True, tag_field="type", tag="custom"):
    """A tool that is no function."""

    custom: CustomDefinition


Tool = FunctionTool | CustomTool


class Named(Struct, frozen=True):
    """One tool, by name."""

    name: str


class NamedFunction(Struct, frozen=True, tag_field="type", tag="function"):
    """This function and no other."""

    function: Named


class NamedCustom(Struct, frozen=True, tag_field="type", tag="custom"):
    """This custom tool and no other."""

    custom: Named


class Allowed(Struct, frozen=True):
    """Some of the tools."""

    mode: Literal["auto", "required"]
    tools: list[JsonObject]


class AllowedTools(Struct, frozen=True, tag_field="type", tag="allowed_tools"):
    """One of these tools."""

    allowed_tools: Allowed


ToolChoice = Literal["none", "auto", "required"] | NamedFunction | NamedCustom | AllowedTools


class TextFormat(Struct, frozen=True, tag_field="type", tag="text"):
    """Any text."""


class JsonFormat(Struct, frozen=True, tag_field="type", tag="json_object"):
    """Some JSON object."""


class JsonSchema(Struct, frozen=True):
    """A schema for the whole answer."""

    name: FunctionName
    description: str | None = None
    schema: JsonObject | None = None
    strict: bool | None = None


class SchemaFormat(Struct, frozen=True, tag_field="type", tag="json_schema"):
    """JSON after a schema."""

    json_schema: JsonSchema


ResponseFormat = TextFormat | JsonFormat | SchemaFormat


class Voice(Struct, frozen=True):
    """A voice of one's own."""

    id: str


class Audio(Struct, frozen=True):
    """How the answer is to sound."""

    voice: str | Voice
    format: Literal["wav", "aac", "mp3", "flac", "opus", "pcm16"]


class Prediction(Struct, frozen=True, tag_field="type", tag="content"):
    """What the answer will mostly be."""

    content: str | Annotated[list[TextPart], Meta(min_length=1)]


class Approximately(Struct, frozen=True, tag_field="type", tag="approximate"):
    """About where the user is."""

    approximate: JsonObject


class WebSearch(Struct, frozen=True):
    """How the web is searched."""

    search_context_size: Literal["low", "medium", "high"] | None = None
    user_location: Approximately | None = None
