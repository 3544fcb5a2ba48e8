from __future__ import annotations

import pytest

from engines import schemas
from engines.base import EngineError


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "uniqueItems": True},
        {"properties": {"a": {"not": {"type": "string"}}}},
        {"anyOf": [{"if": {}, "then": {}}]},
        {"type": "object", "dependentRequired": {"a": ["b"]}},
        {"$defs": {"x": {"items": {"type": "string", "format": "uri"}}}},
        {"type": "integer", "minimum": 1, "exclusiveMinimum": True},
        {"type": "string", "x-guidance": {"lenient": True}},
    ],
)
def test_what_cannot_be_kept_is_refused_or_left_out(schema):
    with pytest.raises(EngineError) as raised:
        schemas.checked(schema)
    assert raised.value.kind == "unsupported"
    assert schemas.checked(schemas.loosened(schema)) is not None


@pytest.mark.parametrize(
    "schema",
    [
        {"title": "t", "description": "d", "default": 1, "examples": [{"not": 1}], "x-note": "n"},
        {"properties": {"not": {"type": "string"}, "if": {"const": {"format": "uri"}}}},
        {"enum": [{"uniqueItems": True}], "uniqueItems": False},
        {"type": "string", "format": "date-time", "pattern": "a+"},
    ],
)
def test_names_values_and_notes_are_no_keywords(schema):
    assert schemas.checked(schema) == {k: v for k, v in schema.items() if k != "uniqueItems"}


def test_size_and_depth_are_bounded():
    deep: dict = {}
    for _ in range(schemas.MAX_SCHEMA_DEPTH):
        deep = {"items": deep}
    for schema in (deep, {"enum": ["x" * schemas.MAX_SCHEMA_BYTES]}, ["x"], True, None):
        with pytest.raises(EngineError) as raised:
            schemas.checked(schema)
        assert raised.value.kind == "invalid"


def test_objects_are_closed_where_that_cannot_hurt():
    inner = {"properties": {"b": {}}}
    schema = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    closed = schemas.closed(schema)
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["additionalProperties"] is False
    assert schemas.closed({"properties": {}})["additionalProperties"] is False
    for kept in (
        {"properties": {"a": {}}, "required": ["z"]},
        {"properties": {"a": {}}, "additionalProperties": True},
        {"properties": {"a": {}}, "anyOf": [{"required": ["b"]}]},
        {"allOf": [{"properties": {"a": {}}}]},
        {"type": "object"},
    ):
        assert schemas.closed(kept) == kept


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {}}, "required": 5},
        {"properties": {"a": {}}, "required": [{}]},
        {"properties": [], "anyOf": {}, "items": 3, "$defs": None},
        {"format": []},
    ],
)
def test_nonsense_is_left_to_the_compiler(schema):
    schemas.closed(schemas.loosened(schema))
