"""A YAML node and a type become a value: one walk for every Struct, led by `msgspec.inspect`.

The fields are listed once, in `router.config.schema`; nothing here knows their names. Where msgspec would stop at
its first complaint, the walk goes on: what can't be read is reported and left at its default, or at an empty
stand-in where it is required, so that the rest of the file is looked at too. Whoever calls must look at the report
before he trusts the value.

Aliases may share nodes; every visit counts against a bound, so that a small file can't unfold into a large tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from msgspec import inspect

from router.config import scalars
from router.config.document import foreign_tag, line_of
from router.config.environment import has_variable
from router.config.report import Path, Report, listed, nearest, quoted

_MOST_VALUES = 50_000
"""A file of the largest size has fewer without aliases that multiply."""

_BROKEN = object()


class TooManyValues(Exception):  # noqa: N818 - ends the walk; the reader makes a Problem of it
    """Aliases unfold into more values than a config may have."""


class Walk:
    """The walk through one file."""

    def __init__(self, report: Report, environ: Mapping[str, str]) -> None:
        self._report = report
        self._environ = environ
        self._visits = 0

    def value(self, node: yaml.Node, kind: inspect.Type, path: Path) -> Any:
        """What ``node`` says as ``kind``. Raises TooManyValues."""
        self._visits += 1
        if self._visits > _MOST_VALUES:
            raise TooManyValues
        described = None
        if isinstance(kind, inspect.Metadata):
            described = (kind.extra_json_schema or {}).get("description")
            kind = kind.type
        if foreign_tag(node):
            return self._wrong(path, f"the tag {quoted(node.tag)} is not known here", node)
        if isinstance(kind, inspect.UnionType):
            return self._union(node, kind, path)
        if isinstance(kind, inspect.StructType):
            return self._struct(node, kind, path)
        if isinstance(kind, inspect.DictType):
            return self._dict(node, kind, path)
        if isinstance(kind, inspect.ListType | inspect.VarTupleType):
            return self._list(node, kind, path)
        return self._scalar(node, kind, described, path)

    def _wrong(self, path: Path, message: str, node: yaml.Node) -> object:
        self._report.problem(path, message, self._line(path, node))
        return _BROKEN

    def _line(self, path: Path, node: yaml.Node) -> int | None:
        collection = isinstance(node, yaml.CollectionNode)
        return self._report.line(path) if collection and path else line_of(node)

    def _scalar(
        self, node: yaml.Node, kind: inspect.Type, described: str | None, path: Path
    ) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return self._wrong(path, f"must be {_wanted(kind)}, not {_form(node)}", node)
        if has_variable(node.value):
            self._report.fill(path, node.value)
        try:
            return scalars.convert(node, kind, described, self._environ)
        except scalars.Complaint as complaint:
            for message in complaint.messages:
                self._wrong(path, message, node)
            return _BROKEN

    def _union(self, node: yaml.Node, union: inspect.UnionType, path: Path) -> Any:
        kinds = [kind for kind in union.types if not isinstance(kind, inspect.NoneType)]
        if len(kinds) < len(union.types) and scalars.is_null(node):
            return None
        tagged = {
            str(_bare(kind).tag): kind
            for kind in kinds
            if isinstance(_bare(kind), inspect.StructType)
        }
        if len(tagged) > 1:
            return self._tagged(node, tagged, path)
        return self.value(node, _fitting(node, kinds), path)

    def _tagged(self, node: yaml.Node, kinds: Mapping[str, Any], path: Path) -> Any:
        field = next(iter(kinds.values())).tag_field
        options = sorted(kinds)
        if not isinstance(node, yaml.MappingNode):
            return self._wrong(path, f"must be a mapping, not {_form(node)}", node)
        tag = next((value for key, value in node.value if key.value == field), None)
        if tag is None:
            return self._wrong(path, f"`{field}` is missing: one of {listed(options)}", node)
        if not isinstance(tag, yaml.ScalarNode):
            message = f"must be one of {listed(options)}, not {_form(tag)}"
            return self._wrong((*path, field), message, tag)
        try:
            return self._struct(node, kinds[scalars.choice(tag, options)], path)
        except scalars.Complaint as complaint:
            return self._wrong((*path, field), complaint.messages[0], tag)

    def _struct(self, node: yaml.Node, kind: inspect.StructType, path: Path) -> Any:
        fields = {field.encode_name: field for field in kind.fields}
        values: dict[str, Any] = {}
        entries = self._entries(node, path)
        if entries is None:
            return _BROKEN
        for name, (key, child) in entries.items():
            if name == kind.tag_field:
                continue
            if name not in fields:
                self._unknown(path, key, [*fields])
                continue
            field = fields[name]
            if scalars.is_empty(child) and not field.required and _is_collection(field.type):
                continue
            values[field.name] = self.value(child, field.type, (*path, name))
        for name, field in fields.items():
            if field.required and name not in entries:
                self._report.problem(path, f"`{name}` is missing", self._line(path, node))
        return _build(kind, values)

    def _unknown(self, path: Path, key: yaml.ScalarNode, options: list[str]) -> None:
        hint = nearest(key.value, options) or f"; possible here: {listed(options)}"
        if key.value == "<<":
            hint = "; merge keys are not part of YAML 1.2"
        self._report.problem(path, f"unknown key {quoted(key.value)}{hint}", line_of(key))

    def _dict(self, node: yaml.Node, kind: inspect.DictType, path: Path) -> Any:
        entries = self._entries(node, path)
        if entries is None:
            return _BROKEN
        if kind.min_length is not None and len(entries) < kind.min_length:
            self._wrong(path, _too_few(kind.min_length), node)
        walked = {
            name: self.value(child, kind.value_type, (*path, name))
            for name, (_, child) in entries.items()
        }
        return {name: value for name, value in walked.items() if value is not _BROKEN}

    def _entries(
        self, node: yaml.Node, path: Path
    ) -> dict[str, tuple[yaml.ScalarNode, yaml.Node]] | None:
        """The mapping's keys, as text, each with its own node and its value's; None if it is no mapping."""
        if not isinstance(node, yaml.MappingNode):
            if scalars.is_empty(node):
                return {}
            self._wrong(path, f"must be a mapping, not {_form(node)}", node)
            return None
        entries: dict[str, tuple[yaml.ScalarNode, yaml.Node]] = {}
        for key, child in node.value:
            if complaint := _key_complaint(key):
                self._report.problem(path, complaint, line_of(key))
            elif key.value in entries:
                first = line_of(entries[key.value][0])
                message = f"is there twice; first on line {first}"
                self._report.problem((*path, key.value), message, line_of(key))
            else:
                entries[key.value] = (key, child)
                self._report.place((*path, key.value), line_of(key))
        return entries

    def _list(
        self, node: yaml.Node, kind: inspect.ListType | inspect.VarTupleType, path: Path
    ) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            if not scalars.is_empty(node):
                return self._wrong(path, f"must be a list, not {_form(node)}", node)
            items: list[yaml.Node] = []
        else:
            items = node.value
        if kind.min_length is not None and len(items) < kind.min_length:
            self._wrong(path, _too_few(kind.min_length), node)
        walked: list[Any] = []
        for index, item in enumerate(items):
            self._report.place((*path, index), line_of(item))
            walked.append(self.value(item, kind.item_type, (*path, index)))
        stand_in = _stand_in(_bare(kind.item_type))
        walked = [stand_in if value is _BROKEN else value for value in walked]
        read = [value for value in walked if value is not _BROKEN]
        return tuple(read) if isinstance(kind, inspect.VarTupleType) else read


def _build(kind: inspect.StructType, values: Mapping[str, Any]) -> Any:
    """The Struct; what is required and missing gets a stand-in, so that rules can look at the rest."""
    read = {name: value for name, value in values.items() if value is not _BROKEN}
    for field in kind.fields:
        if field.required and field.name not in read:
            stand_in = _stand_in(_bare(field.type))
            if stand_in is _BROKEN:
                return _BROKEN
            read[field.name] = stand_in
    return kind.cls(**read)


def _stand_in(kind: inspect.Type) -> Any:
    if isinstance(kind, inspect.StrType):
        return ""
    if isinstance(kind, inspect.ListType):
        return []
    if isinstance(kind, inspect.DictType):
        return {}
    if isinstance(kind, inspect.StructType):
        return _build(kind, {})
    return _BROKEN


def _bare(kind: Any) -> Any:
    return kind.type if isinstance(kind, inspect.Metadata) else kind


def _is_collection(kind: inspect.Type) -> bool:
    bare = _bare(kind)
    return isinstance(
        bare,
        inspect.StructType | inspect.DictType | inspect.ListType | inspect.VarTupleType,
    )


def _fitting(node: yaml.Node, kinds: list[inspect.Type]) -> inspect.Type:
    """The first kind that has the node's form; the first of all if none has."""
    form = "true or false" if scalars.is_bool(node) else _form(node)
    for kind in kinds:
        if _wanted(_bare(kind)) == form:
            return kind
    return kinds[0]


def _form(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "null" if scalars.is_null(node) else "text"


def _wanted(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.StructType | inspect.DictType):
        return "a mapping"
    if isinstance(kind, inspect.ListType | inspect.VarTupleType):
        return "a list"
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, inspect.IntType):
        return "a whole number"
    return "a number" if isinstance(kind, inspect.FloatType) else "text"


def _too_few(least: int) -> str:
    return f"must have at least {least} {'entry' if least == 1 else 'entries'}"


def _key_complaint(key: yaml.Node) -> str | None:
    if not isinstance(key, yaml.ScalarNode) or foreign_tag(key):
        return "a key must be text"
    if not key.value:
        return "a key is empty"
    if not key.value.isprintable():
        return "a key has an unprintable character"
    if "${" in key.value:
        return "the environment fills values, not keys"
    return None
