"""One scalar of the file as the type that is wanted there, or a complaint in plain words.

Numbers, booleans and null are those of YAML 1.2's core schema in decimal, so that nothing is guessed: ``yes`` is
not a boolean, ``1:30`` not a number, and ``010`` is refused because readers disagree about it. A text's value is
never quoted in a complaint, since it may be a secret; a number's and a choice's is, as the file writes it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import yaml
from msgspec import inspect

from router.config import environment
from router.config.document import is_plain
from router.config.report import listed, nearest, quoted

Scalar = str | int | float | bool

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_MOST_DIGITS = 18
"""Of an integer: what fits 64 bits, as msgspec and the engines hold it."""


class Complaint(Exception):  # noqa: N818 - it is caught one call up and becomes a Problem
    """Why a scalar can't be what is wanted; several when several variables are missing."""

    def __init__(self, *messages: str) -> None:
        super().__init__(*messages)
        self.messages = messages


def is_null(node: yaml.Node) -> bool:
    """Nothing, ``~`` or ``null``, without quotes."""
    return isinstance(node, yaml.ScalarNode) and is_plain(node) and node.value in _NULL


def is_bool(node: yaml.Node) -> bool:
    """True or false, without quotes."""
    return isinstance(node, yaml.ScalarNode) and is_plain(node) and node.value in _BOOL


def is_empty(node: yaml.Node) -> bool:
    """Nothing at all after the colon."""
    return is_null(node) and not node.value


def convert(
    node: yaml.ScalarNode, kind: inspect.Type, described: str | None, environ: Mapping[str, str]
) -> Scalar:
    """The value of ``node`` as ``kind``; ``described`` says in words what a pattern wants. Raises Complaint."""
    if isinstance(kind, inspect.StrType):
        return _text(node, kind, described, environ)
    if isinstance(kind, inspect.LiteralType):
        return choice(node, [str(value) for value in kind.values])
    if isinstance(kind, inspect.BoolType):
        if is_plain(node) and node.value in _BOOL:
            return _BOOL[node.value]
        raise Complaint(f"must be true or false, not {_shown(node)}")
    if isinstance(kind, inspect.IntType):
        return _whole(node, kind)
    if isinstance(kind, inspect.FloatType):
        return _number(node, kind)
    raise TypeError(f"the config reader does not know {type(kind).__name__}")


def choice(node: yaml.ScalarNode, options: Sequence[str]) -> str:
    """The one of ``options`` that ``node`` names. Raises Complaint."""
    text: str = node.value
    if text in options:
        return text
    one_of = f"one of {listed(options)}" if len(options) > 1 else listed(options)
    raise Complaint(f"must be {one_of}, not {_shown(node)}{nearest(text, options)}")


def _text(
    node: yaml.ScalarNode,
    kind: inspect.StrType,
    described: str | None,
    environ: Mapping[str, str],
) -> str:
    if is_null(node):
        raise Complaint(f"must be text, not {quoted(node.value)}" if node.value else "is empty")
    filled = environment.fill(node.value, environ)
    if filled.complaints:
        raise Complaint(*filled.complaints)
    text = filled.text
    if not text:
        raise Complaint("is empty")
    if not text.isprintable():
        raise Complaint("has a line break or another unprintable character")
    if kind.pattern is not None and not re.search(kind.pattern, text):
        raise Complaint(f"must be {described or f'text that matches {quoted(kind.pattern)}'}")
    if kind.min_length is not None and len(text) < kind.min_length:
        raise Complaint(f"must have at least {kind.min_length} characters")
    if kind.max_length is not None and len(text) > kind.max_length:
        raise Complaint(f"must have at most {kind.max_length} characters")
    return text


def _whole(node: yaml.ScalarNode, kind: inspect.IntType) -> int:
    text: str = node.value
    if not is_plain(node) or not _INT.fullmatch(text):
        raise Complaint(f"must be a whole number, not {_shown(node)}{_hint(node)}")
    if len(text) > _MOST_DIGITS:
        raise Complaint(f"is too large a number: {_shown(node)}")
    value = int(text)
    _check_range(value, kind, node)
    return value


def _number(node: yaml.ScalarNode, kind: inspect.FloatType) -> float:
    text: str = node.value
    if not is_plain(node) or not _FLOAT.fullmatch(text):
        raise Complaint(f"must be a number, not {_shown(node)}{_hint(node)}")
    value = float(text)
    if not math.isfinite(value):
        raise Complaint(f"is too large a number: {_shown(node)}")
    _check_range(value, kind, node)
    return value


def _check_range(
    value: float, kind: inspect.IntType | inspect.FloatType, node: yaml.ScalarNode
) -> None:
    limits = (
        (kind.ge, "at least", kind.ge is None or value >= kind.ge),
        (kind.gt, "more than", kind.gt is None or value > kind.gt),
        (kind.le, "at most", kind.le is None or value <= kind.le),
        (kind.lt, "less than", kind.lt is None or value < kind.lt),
    )
    for bound, words, holds in limits:
        if not holds:
            raise Complaint(f"must be {words} {bound:g}, not {_shown(node)}")


def _shown(node: yaml.ScalarNode) -> str:
    if not node.value and is_plain(node):
        return "empty"
    return quoted(node.value) if is_plain(node) else f"the text {quoted(node.value)}"


def _hint(node: yaml.ScalarNode) -> str:
    if environment.has_variable(node.value):
        return "; the environment fills text only"
    if is_plain(node) and _LEADING_ZERO.fullmatch(node.value):
        return "; a leading 0 means different numbers to different readers"
    return ""
