"""Which JSON schemas an answer can be held to.

Grammar engines differ in what they make of a keyword that they can't honour: some refuse it, some let it pass
without a word, and then the answer is valid JSON and the wrong answer. So the keywords are checked here, by name,
before any engine sees the schema: what limits values and can't be kept is refused, what only describes them is
allowed. OpenAI's own subset is within what passes.

Tools that aren't ``strict`` are a wish at OpenAI's, not a promise: for them such keywords are left out instead.

Doesn't say whether a schema makes sense (its types exist, its references lead somewhere, some value satisfies it):
the engine's own compiler does.

Source: https://json-schema.org/draft/2020-12/json-schema-validation
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from engines.base import EngineError

MAX_SCHEMA_BYTES = 128 * 1024
"""OpenAI allows 120,000 characters of names and values in a schema."""

MAX_SCHEMA_DEPTH = 64
"""JSON nesting, some three levels of it to one of the schema; OpenAI allows ten of those."""

UNSUPPORTED = frozenset(
    {
        "not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "propertyNames",
        "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems",
        "$dynamicRef", "$recursiveRef", "divisibleBy", "disallow", "extends", "x-guidance",
    }
)  # fmt: skip
"""Keywords that would limit values and can't be kept; ``x-guidance`` is the compiler's own switchboard."""

FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
)
"""OpenAI's list as well."""

_SCHEMA_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_SCHEMA_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_SCHEMAS = frozenset({"items", "additionalProperties", "additionalItems"})

_OPENERS = frozenset(
    {"additionalProperties", "patternProperties", "minProperties", "anyOf", "oneOf", "$ref"}
)
"""Beside these, an object may need more than its own properties."""

Schema = dict[str, Any]


def checked(schema: Any) -> Schema:
    """Return the schema. Raises EngineError: ``unsupported`` for a keyword that can't be kept, ``invalid`` for none."""
    measure(schema)

    def refuse(keyword: str) -> None:
        raise EngineError("unsupported", f"the schema's {keyword} can't be kept by this engine")

    kept: Schema = _walked(schema, refuse)
    return kept


def loosened(schema: Any) -> Schema:
    """Return the schema without what can't be kept. Raises EngineError("invalid") where it is none."""
    measure(schema)
    kept: Schema = _walked(schema, lambda _keyword: None)
    return kept


def closed(schema: Any) -> Any:
    """Return the schema with objects held to their named properties where it leaves that open.

    A model has nothing to gain from inventing keys, and a weak one does. With ``allOf`` among the schema's keywords
    it stays open, since there one part would forbid what the other asks for.
    """
    return schema if _uses(schema, "allOf") else _closed(schema)


def _uses(value: Any, key: str) -> bool:
    if isinstance(value, list):
        return any(_uses(item, key) for item in value)
    return isinstance(value, dict) and (
        key in value or any(_uses(item, key) for item in value.values())
    )


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    inner = {key: _each_schema(key, value, _closed) for key, value in schema.items()}
    names = inner.get("properties")
    required = inner.get("required", [])
    if not isinstance(names, dict) or not isinstance(required, list) or inner.keys() & _OPENERS:
        return inner
    if all(name in names for name in required if isinstance(name, str)):
        inner["additionalProperties"] = False
    return inner


def measure(schema: Any) -> None:
    """Refuse what is no object, too large or too deep. Raises EngineError("invalid")."""
    if not isinstance(schema, dict):
        raise EngineError("invalid", "a JSON schema must be an object")
    if _depth(schema, MAX_SCHEMA_DEPTH + 1) > MAX_SCHEMA_DEPTH:
        raise EngineError("invalid", f"the schema is nested more than {MAX_SCHEMA_DEPTH} deep")
    size = len(msgspec.json.encode(schema))
    if size > MAX_SCHEMA_BYTES:
        raise EngineError("invalid", f"the schema has {size} bytes, at most {MAX_SCHEMA_BYTES}")


def _depth(value: Any, limit: int) -> int:
    if limit == 0 or not isinstance(value, dict | list):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max((_depth(item, limit - 1) for item in inner), default=0)


def _walked(schema: Any, on_unsupported: Callable[[str], None]) -> Any:
    if not isinstance(schema, dict):
        return schema
    kept: Schema = {}
    for key, value in schema.items():
        if key == "uniqueItems" and value is False:
            continue  # limits nothing
        if _beyond(key, value):
            on_unsupported(f"{key!r}" if key != "format" else f"format {value!r}")
        else:
            kept[key] = _each_schema(key, value, lambda inner: _walked(inner, on_unsupported))
    return kept


def _each_schema(key: str, value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a keyword's value with ``change`` applied to the schemas directly in it."""
    if key in _SCHEMA_MAPS and isinstance(value, dict):
        return {name: change(inner) for name, inner in value.items()}
    if isinstance(value, list) and (key in _SCHEMA_LISTS or key == "items"):
        return [change(inner) for inner in value]
    return change(value) if key in _SCHEMAS else value


def _beyond(key: str, value: Any) -> bool:
    if key == "format":
        return not isinstance(value, str) or value not in FORMATS
    if key in ("exclusiveMinimum", "exclusiveMaximum"):
        return isinstance(value, bool)  # of draft 4; silently no limit today
    return key in UNSUPPORTED
