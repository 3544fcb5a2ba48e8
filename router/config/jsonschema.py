"""The config's JSON Schema, so that an editor completes and checks the YAML while it is typed.

msgspec writes it from the Structs. Added here: the descriptions that stand as docstrings under the fields, which no
object carries at run time, so they are read from the source; and room for ``${NAME}`` wherever a text has a
pattern or a least length. An editor checks shapes; `nenya check` also checks what parts mean for each other.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.inspect import StructType, multi_type_info

from engines.specs import EngineSpec
from router.config import schema

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_VARIABLE = r"\$\{[A-Za-z_][A-Za-z0-9_]*\}"
_STRICT = ("pattern", "minLength")


def config_schema() -> dict[str, Any]:
    """The schema of a config file, as JSON values."""
    made = msgspec.json.schema(schema.Config)
    definitions: dict[str, Any] = made["$defs"]
    for cls in _structs():
        definition = definitions.get(cls.__name__)
        if definition is not None:
            _describe(definition["properties"], cls)
    for node in _nodes(definitions):
        _allow_variable(node)
    head = {"$schema": _DIALECT, "title": "Nenya config"}
    tree: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(head | made))
    return tree


def _structs() -> Iterator[type]:
    """Every Struct that a config can have in it."""
    parts = [part for part in vars(schema).values() if isinstance(part, type)]
    kinds = [
        part for part in parts if issubclass(part, msgspec.Struct) and part is not msgspec.Struct
    ]
    yield from kinds
    (engines,) = multi_type_info([EngineSpec])
    for kind in getattr(engines, "types", (engines,)):
        if isinstance(kind, StructType):
            yield kind.cls


def _describe(properties: dict[str, Any], cls: type) -> None:
    for name, text in _field_docs(cls).items():
        if name in properties:
            properties[name]["description"] = text


def _field_docs(cls: type) -> dict[str, str]:
    """The strings that stand right under the fields of ``cls``; none where the source isn't there."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except OSError:
        return {}
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            docs[field.target.id] = " ".join(text.value.value.split())
    return docs


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        for child in list(tree.values()):
            yield from _nodes(child)
        yield tree
    elif isinstance(tree, list):
        for child in tree:
            yield from _nodes(child)


def _allow_variable(node: dict[str, Any]) -> None:
    """A text that must look like something may be a variable instead."""
    strict = {
        name: node.pop(name) for name in _STRICT if node.get("type") == "string" and name in node
    }
    if strict:
        node["anyOf"] = [strict, {"pattern": _VARIABLE}]
