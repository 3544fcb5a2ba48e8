"""What an answer is held to, as a grammar of llguidance.

llama.cpp's own conversion of JSON schemas passes over what it doesn't know (bounds of numbers, most of a pattern)
with a line in its log. llguidance keeps JSON Schema or says no. But llama.cpp turns its no into a line in the log,
too, and samples on without any grammar. So there a grammar is tried first, with a letter in front that nobody would
write: if the first token isn't that letter, the grammar is not at work, and the request is refused.

It also ends an answer that could go on only with the one token that llama.cpp names as the end, which need not be the
one the model writes; so the latter stands in the grammar.

Where a model's template and vocabulary have ``<tool_call>``, calls are written as it was trained to; else as JSON.

Source: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct

from engines import schemas
from engines.base import EngineError
from engines.forced_tools import MAX_CALLS

CALL_START, CALL_END = "<tool_call>", "</tool_call>"
"""Hermes' tags, and Qwen's."""

PROBE = "~"
"""In front of a grammar that is tried: no answer begins with it by itself, and one token can."""

_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as Python writes it. Free white space would let a weak model write nothing else."""


class Shape(Struct, frozen=True):
    """What an answer must be; all unset: free text."""

    answer: dict[str, Any] | None = None
    """Schema of an answer in JSON."""
    call: dict[str, Any] | None = None
    """Schema of one tool call."""
    must_call: bool = False
    several: bool = False
    native: bool = False
    """Whether calls stand in tags, as the model writes them."""


def grammar(shape: Shape, *, end: str = "", probe: bool = False) -> str:
    """Return the grammar; ``end`` is the control token that ends the model's turns.

    Raises EngineError for calls that may be and have no tags of their own.
    """
    ways: list[str] = []
    rules: list[str] = []
    if shape.answer is not None:
        ways.append("answer")
        rules.append(f"answer: %json {_json(shape.answer)}")
    if shape.call is not None and not shape.must_call and shape.answer is None:
        ways = ["TEXT", "lead first"]
        rules += _calls(shape)
        rules.append("TEXT: /(.|\\n)*/")
        rules.append(f"lead[lazy]: /(.|\\n)*{CALL_START}\\n/")  # ends TEXT where a call begins
    elif shape.call is not None:
        ways.append("calls")
        rules += _calls(shape)
    start = f"({' | '.join(ways)})"
    if probe:
        start = f'"{PROBE}" {start}'
    if end:
        start += f" {end}?"
    return "\n".join(["%llguidance {}", f"start: {start}", *rules])


def _calls(shape: Shape) -> list[str]:
    call = shape.call or {}
    if shape.native:
        more = f' ("\\n{CALL_START}\\n" call){{0,{MAX_CALLS - 1}}}' if shape.several else ""
        return [
            rf'calls: "{CALL_START}\n" first',
            f"first: call{more}",
            rf'call: object "\n{CALL_END}"',
            f"object: %json {_json(call)}",
        ]
    if not shape.must_call:
        raise EngineError(
            "unsupported",
            "this model's template has no tags for tool calls, so they can't be optional here: "
            "set tool_choice, or leave out response_format and the control tokens in the text",
        )
    if not shape.several:
        return [f"calls: %json {_json(call)}"]
    definitions = call.get("$defs", {})
    one = {key: value for key, value in call.items() if key != "$defs"}
    many = {"type": "array", "minItems": 1, "maxItems": MAX_CALLS, "items": one}
    return [f"calls: %json {_json({**many, '$defs': definitions})}"]


def _json(schema: dict[str, Any]) -> str:
    return json.dumps({**schemas.closed(schema), "x-guidance": _COMPACT})
