"""Whether a JSON schema is one that OpenAI's strict mode takes, and its sentence on what is wrong if not.

Strict mode holds an answer to its schema token by token, so it asks that nothing is left open: objects name all
their properties, require them all and allow no other. Without ``strict`` only the outermost type is checked.

Not checked: how deep a schema nests and how much is in it; those limits are the provider's and change.

Source: OpenAI's guide to structured outputs (supported schemas); its error messages quoted in public issues.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from router.wire.messages import JsonObject

FORBIDDEN = (
    "oneOf", "allOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties",
)  # fmt: skip
"""Keywords whose meaning can't be held to token by token."""

_NEEDS_NO_TYPE = ("$ref", "anyOf", "enum", "const")

_OBJECT = msgspec.Raw(b'"object"')

Where = tuple[str, ...]


def problem(schema: JsonObject, *, strict: bool) -> str | None:
    """What is wrong with ``schema``, as a sentence; None if nothing is.

    Raises RecursionError for one that nests beyond all measure.
    """
    if not strict and schema.get("type") == _OBJECT:
        return None
    tree: dict[str, Any] = {name: msgspec.json.decode(value) for name, value in schema.items()}
    kind = tree.get("type")
    if kind != "object" and (strict or kind is not None):
        named = "None" if kind is None else str(kind)[:64]
        return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{named}\"'."
    if not strict:
        return None
    return next(_problems(tree, ()), None)


def _problems(node: Mapping[str, Any], where: Where) -> Iterator[str]:
    for word in FORBIDDEN:
        if word in node:
            yield f"In context={_at(where)}, '{word}' is not permitted."
    if "type" not in node and not any(word in node for word in _NEEDS_NO_TYPE):
        yield f"In context={_at(where)}, schema must have a 'type' key."
    if "properties" in node or _is(node, "object"):
        yield from _object_problems(node, where)
    if _is(node, "array") and not isinstance(node.get("items"), Mapping):
        yield f"In context={_at(where)}, array schema missing items."
    for inner, place in _inside(node, where):
        yield from _problems(inner, place)


def _object_problems(node: Mapping[str, Any], where: Where) -> Iterator[str]:
    if node.get("additionalProperties") is not False:
        yield f"In context={_at(where)}, 'additionalProperties' is required to be supplied and to be false."
    properties = node.get("properties", {})
    required = node.get("required", [])
    if not isinstance(properties, Mapping):
        yield f"In context={_at(where)}, 'properties' must be an object."
        return
    if not isinstance(required, list):
        required = []
    for name in properties:
        if name not in required:
            yield (
                f"In context={_at(where)}, 'required' is required to be supplied and to be an array including "
                f"every key in properties. Missing '{name[:64]}'."
            )
    for name in required:
        if name not in properties:
            yield (
                f"In context={_at(where)}, 'required' is required to be supplied and to be an array including "
                f"every key in properties. Extra required key '{str(name)[:64]}' supplied."
            )


def _is(node: Mapping[str, Any], kind: str) -> bool:
    given = node.get("type")
    return given == kind or (isinstance(given, list) and kind in given)


def _inside(node: Mapping[str, Any], where: Where) -> Iterator[tuple[Mapping[str, Any], Where]]:
    """The schemas inside one, and where they are."""
    for group in ("properties", "$defs", "definitions"):
        inner = node.get(group)
        if isinstance(inner, Mapping):
            for name, schema in inner.items():
                if isinstance(schema, Mapping):
                    yield schema, (*where, group, name)
    items = node.get("items")
    if isinstance(items, Mapping):
        yield items, (*where, "items")
    for i, schema in enumerate(_list(node.get("anyOf"))):
        if isinstance(schema, Mapping):
            yield schema, (*where, "anyOf", str(i))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _at(where: Where) -> str:
    """As Python writes a tuple, which is how OpenAI says it; bounded, for names are the client's."""
    return repr(where)[:512]
