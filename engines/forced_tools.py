"""Tool calls that a request demands, by a grammar instead of a model's good will.

``tool_choice: required`` or a named function promises a call. Engines offer the tools to the
template and hope; llama.cpp even accepts the option and ignores it for most templates. A
constrained answer keeps the promise with any model: every call is an object with the name first and
the arguments, by the function's schema, after it. What comes back is cut into tool-call pieces as
it is written.

A named function is called once. Where the model may choose, it may call several times unless
``parallel_tool_calls`` is false. Knows nothing of how an engine constrains.
"""

from __future__ import annotations

import re
import secrets
from typing import Any, Literal

import msgspec
from msgspec import Struct

from engines import schemas
from engines.base import EngineError, FinishReason, ToolCallDelta

_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""OpenAI: a function without ``parameters`` takes none."""

MAX_CALLS = 16
"""Of one answer. More than anybody needs; a weak model would go on to the end of its context."""

_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')


class _Function(Struct):
    name: str
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


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
    """What an answer must be so that it calls."""

    schema: dict[str, Any]
    """Of one call: an object of ``name`` and ``arguments``, in this order."""
    several: bool = False
    named: bool = False

    @property
    def reason(self) -> FinishReason:
        """How such an answer ends; OpenAI says ``stop`` where the function was named."""
        return "stop" if self.named else "tool_calls"


def offered(tools: bytes | None, choice: bytes | None) -> bool:
    """Whether the model is to see the tools at all: not with ``tool_choice: none``."""
    return tools is not None and (choice is None or _choice(choice) != "none")


def force(tools: bytes | None, choice: bytes | None, *, parallel: bool = True) -> ForcedCall | None:
    """Return the call that ``tool_choice`` demands, None for none. Raises EngineError."""
    wanted = None if choice is None else _choice(choice)
    if tools is None or wanted in (None, "none", "auto"):
        return None
    functions = _functions(tools)
    if isinstance(wanted, _NamedChoice):
        name = wanted.function.name
        if name not in functions:
            raise EngineError(
                "invalid", f"tool_choice names {name!r}, which is not among the tools"
            )
        return ForcedCall(_any_of([functions[name]]), named=True)
    if not functions:
        raise EngineError("invalid", "tool_choice demands a call, but there are no tools")
    return ForcedCall(_any_of(list(functions.values())), several=parallel)


def call_of_any(tools: bytes) -> dict[str, Any]:
    """Return the schema of a call of any of the tools. Raises EngineError."""
    return _any_of(list(_functions(tools).values()))


def _functions(tools: bytes) -> dict[str, _Function]:
    try:
        return {tool.function.name: tool.function for tool in _tools_decoder.decode(tools)}
    except msgspec.MsgspecError as error:
        raise EngineError("unsupported", f"a tool that is no function: {error}") from error


def _choice(choice: bytes) -> str | _NamedChoice:
    try:
        wanted = _choice_decoder.decode(choice)
    except msgspec.MsgspecError as error:
        raise EngineError("unsupported", f"this tool_choice can't be honoured: {error}") from error
    if isinstance(wanted, str) and wanted not in ("none", "auto", "required"):
        raise EngineError("invalid", f"{wanted!r} is no tool_choice")
    return wanted


def _arguments(function: _Function) -> dict[str, Any]:
    if function.parameters is None:
        return _NO_ARGUMENTS
    keep = schemas.checked if function.strict else schemas.loosened
    return {"type": "object", **keep(function.parameters)}


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
    """Cuts the constrained answer, as it grows, into the pieces of its tool calls.

    Whatever stands around the calls (brackets, commas, tags) is passed over.
    """

    def __init__(self) -> None:
        self._index = -1
        self._head = ""
        self._arguments: _ObjectText | None = None

    def feed(self, text: str) -> tuple[ToolCallDelta, ...]:
        """Return the pieces that ``text``, the next part of the answer, adds."""
        pieces: list[ToolCallDelta] = []
        while text:
            open_ = self._arguments
            text = self._open(text, pieces) if open_ is None else self._go_on(open_, text, pieces)
        return tuple(pieces)

    def _open(self, text: str, pieces: list[ToolCallDelta]) -> str:
        self._head += text
        match = _HEAD.search(self._head)
        if match is None:
            return ""
        name = msgspec.json.decode(match[1], type=str)
        rest, self._head = self._head[match.end() :], ""
        self._index += 1
        self._arguments = _ObjectText()
        pieces.append(ToolCallDelta(self._index, new_call_id(), name))
        return rest

    def _go_on(self, arguments: _ObjectText, text: str, pieces: list[ToolCallDelta]) -> str:
        written, rest = arguments.feed(text)
        if written:
            pieces.append(ToolCallDelta(self._index, arguments=written))
        if arguments.over:
            self._arguments = None
        return rest


def new_call_id() -> str:
    """An id as OpenAI's look."""
    return f"call_{secrets.token_hex(12)}"


class _ObjectText:
    """Lets the text of one JSON object through, and nothing before it."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.over = False

    def feed(self, text: str) -> tuple[str, str]:
        """Return what of ``text`` is the object's, and what comes after its end."""
        start = 0 if self._depth else text.find("{")
        if start < 0:
            return "", ""
        for at in range(start, len(text)):
            self._step(text[at])
            if self._depth == 0:
                self.over = True
                return text[start : at + 1], text[at + 1 :]
        return text[start:], ""

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
