"""Tool calls that a request demands, by a JSON schema instead of a model's good will.

``tool_choice: required`` or a named function promises a call. Engines offer the tools to the
template and hope; llama.cpp even accepts the option and ignores it for most templates. A
constrained answer keeps the promise with any model: the schema of the one function's arguments, or,
where the model may choose, of an object with the name first and the arguments after it. What comes
back is cut into tool-call pieces as it is written.

One call per answer, whatever ``parallel_tool_calls`` allows. Knows nothing of how an engine
constrains.
"""

from __future__ import annotations

import re
import secrets
from typing import Any, Literal

import msgspec
from msgspec import Struct

from engines.base import EngineError, ToolCallDelta

_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""OpenAI: a function without ``parameters`` takes none."""

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')


class _Function(Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Tool(Struct):
    function: _Function
    type: Literal["function"] = "function"


class _Named(Struct):
    name: str


class _NamedChoice(Struct):
    function: _Named
    type: Literal["function"] = "function"


_tools_decoder = msgspec.json.Decoder(list[_Tool])
_choice_decoder: msgspec.json.Decoder[str | _NamedChoice] = msgspec.json.Decoder(str | _NamedChoice)


class ForcedCall(Struct, frozen=True):
    """What an answer must be so that it is a tool call."""

    schema: dict[str, Any]
    name: str | None
    """The function, where there is no choice; then the answer is its arguments alone."""


def offered(tools: bytes | None, choice: bytes | None) -> bool:
    """Whether the model is to see the tools at all: not with ``tool_choice: none``."""
    return tools is not None and (choice is None or _choice(choice) != "none")


def force(tools: bytes | None, choice: bytes | None) -> ForcedCall | None:
    """Return the call that ``tool_choice`` demands, None for none. Raises EngineError."""
    wanted = None if choice is None else _choice(choice)
    if tools is None or wanted in (None, "none", "auto"):
        return None
    try:
        functions = {tool.function.name: tool.function for tool in _tools_decoder.decode(tools)}
    except msgspec.MsgspecError as error:
        raise EngineError("unsupported", f"a tool that is no function: {error}") from error
    if isinstance(wanted, _NamedChoice):
        name = wanted.function.name
        if name not in functions:
            raise EngineError(
                "invalid", f"tool_choice names {name!r}, which is not among the tools"
            )
        functions = {name: functions[name]}
    if not functions:
        raise EngineError("invalid", "tool_choice demands a call, but there are no tools")
    if len(functions) == 1:
        ((name, function),) = functions.items()
        return ForcedCall(_arguments(function), name)
    return ForcedCall(_any_of(list(functions.values())), None)


def _choice(choice: bytes) -> str | _NamedChoice:
    try:
        wanted = _choice_decoder.decode(choice)
    except msgspec.MsgspecError as error:
        raise EngineError("unsupported", f"this tool_choice can't be honoured: {error}") from error
    if isinstance(wanted, str) and wanted not in ("none", "auto", "required"):
        raise EngineError("invalid", f"{wanted!r} is no tool_choice")
    return wanted


def _arguments(function: _Function) -> dict[str, Any]:
    return _NO_ARGUMENTS if function.parameters is None else function.parameters


def _any_of(functions: list[_Function]) -> dict[str, Any]:
    """One schema for a call of any of the functions; their own ``$ref`` keep their targets."""
    definitions = {
        f"arguments{at}": _moved(_arguments(function), f"#/$defs/arguments{at}")
        for at, function in enumerate(functions)
    }
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function.name},
                "arguments": {"$ref": f"#/$defs/arguments{at}"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for at, function in enumerate(functions)
    ]
    return {"$defs": definitions, "anyOf": calls}


def _moved(schema: Any, root: str) -> Any:
    """Lead the schema's local references to its new place."""
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: root + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, root)
        for key, value in schema.items()
    }


class CallWriter:
    """Cuts the constrained answer, as it grows, into the pieces of one tool call."""

    def __init__(self, forced: ForcedCall) -> None:
        self._name = forced.name
        self._started = False
        self._head = ""
        self._arguments = _ObjectText()

    def feed(self, text: str) -> tuple[ToolCallDelta, ...]:
        """Return the pieces that ``text``, the next part of the answer, adds."""
        if self._name is None:
            self._head += text
            match = _HEAD.match(self._head)
            if match is None:
                return ()
            self._name = msgspec.json.decode(match[1], type=str)
            text = self._head[match.end() :]
        arguments = self._arguments.feed(text)
        if self._started:
            return (ToolCallDelta(0, arguments=arguments),) if arguments else ()
        self._started = True
        return (ToolCallDelta(0, f"call_{secrets.token_hex(12)}", self._name, arguments),)


class _ObjectText:
    """Lets the text of one JSON object through, and nothing before or after it."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._over = False

    def feed(self, text: str) -> str:
        if self._over:
            return ""
        start = 0 if self._depth else text.find("{")
        if start < 0:
            return ""
        for at in range(start, len(text)):
            self._step(text[at])
            if self._depth == 0:
                self._over = True
                return text[start : at + 1]
        return text[start:]

    def _step(self, char: str) -> None:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
