"""The smallest JSON value that a schema lets pass, for the answers of a simulated engine.

Reads the part of JSON Schema that structured outputs use: types, const, enum, properties and
required, items, anyOf, oneOf, allOf, local references, and the bounds that a smallest value must
keep. Anything that can't be honoured by this (patterns, references elsewhere, recursion without
end) is refused rather than ignored.

Source: https://json-schema.org/draft/2020-12/json-schema-validation
"""

from __future__ import annotations

import math
from typing import Any

from engines.base import EngineError

MAX_DEPTH = 32
"""Deeper than any schema for an answer; a required recursion ends here."""

BEYOND = frozenset({"patternProperties", "prefixItems", "minProperties", "pattern", "format"})

Schema = dict[str, Any]


def smallest(schema: object) -> Any:
    """Return the value. Raises EngineError: ``invalid`` for no schema, ``unsupported`` for one beyond this."""
    try:
        return _value(schema, schema, 0)
    except (TypeError, ValueError, AttributeError) as error:
        raise EngineError(
            "invalid", f"a keyword of the schema has a wrong value: {error}"
        ) from error


def _value(schema: object, root: object, depth: int) -> Any:
    if schema is True:
        return None
    beyond = isinstance(schema, dict) and schema.keys() & BEYOND
    if beyond:
        raise EngineError("unsupported", f"the simulated engine can't write by {sorted(beyond)}")
    if not isinstance(schema, dict):
        raise EngineError("invalid", f"{schema!r} is no JSON schema")
    if depth > MAX_DEPTH:
        raise EngineError("unsupported", f"a schema nested more than {MAX_DEPTH} deep")
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return _first(schema["enum"], "enum")
    other = _elsewhere(schema, root)
    return _of_type(schema, root, depth) if other is None else _value(other, root, depth + 1)


def _elsewhere(schema: Schema, root: object) -> Any:
    """Return the schema that this one stands for, None where it speaks for itself."""
    if "$ref" in schema:
        return _target(schema["$ref"], root)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return _first(schema[key], key)
    return _merged(schema, root) if "allOf" in schema else None


def _of_type(schema: Schema, root: object, depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "null")
    if isinstance(kind, list):
        kind = _first(kind, "type")
    if kind == "object":
        return _object(schema, root, depth)
    if kind == "array":
        items = schema.get("items", True)
        return [_value(items, root, depth + 1) for _ in range(schema.get("minItems", 0))]
    if kind == "string":
        return _string(schema)
    if kind in ("integer", "number"):
        return _number(schema)
    if kind in ("boolean", "null"):
        return False if kind == "boolean" else None
    raise EngineError("invalid", f"{kind!r} is no type of JSON schema")


def _object(schema: Schema, root: object, depth: int) -> dict[str, Any]:
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise EngineError("invalid", "properties is no object, or required no array")
    return {name: _value(properties.get(name, True), root, depth + 1) for name in required}


def _string(schema: Schema) -> str:
    words = "simulated "
    size = max(int(schema.get("minLength", 0)), min(9, int(schema.get("maxLength", 9))))
    return (words * (size // len(words) + 1))[:size]


def _number(schema: Schema) -> float:
    step = schema.get("multipleOf", 1)
    low: Any = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
    high: Any = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
    lowest = -math.inf if low == -math.inf else math.ceil(low / step)
    highest = math.inf if high == math.inf else math.floor(high / step)
    if lowest * step == schema.get("exclusiveMinimum"):
        lowest += 1
    if highest * step == schema.get("exclusiveMaximum"):
        highest -= 1
    multiple: float = min(max(0, lowest), highest)
    value: float = multiple * step
    return value


def _merged(schema: Schema, root: object) -> Schema:
    merged: Schema = {key: value for key, value in schema.items() if key != "allOf"}
    for part in schema["allOf"]:
        resolved = _target(part["$ref"], root) if "$ref" in part else part
        for key, value in resolved.items():
            if key == "properties":
                merged[key] = {**merged.get(key, {}), **value}
            elif key == "required":
                merged[key] = [*merged.get(key, []), *value]
            else:
                merged[key] = value
    return merged


def _target(reference: object, root: object) -> Any:
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise EngineError("unsupported", f"a reference to {reference!r}")
    at = root
    for key in reference[1:].split("/")[1:]:
        name = key.replace("~1", "/").replace("~0", "~")
        if not isinstance(at, dict) or name not in at:
            raise EngineError("invalid", f"nothing is at {reference!r}")
        at = at[name]
    return at


def _first(values: object, key: str) -> Any:
    if not isinstance(values, list) or not values:
        raise EngineError("invalid", f"{key} must be an array that isn't empty")
    return values[0]
