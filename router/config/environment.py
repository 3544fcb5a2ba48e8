"""``${NAME}`` in a string of the config is replaced from the environment; ``$${`` is the text ``${``.

There is no default syntax and no nesting: the file says which variables it needs, and each must be set. Messages
name variables and never show what is in them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import Struct

_TOKEN = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|(?P<odd>\$\{)")


class Filled(Struct, frozen=True):
    """A string with its variables replaced, and what was wrong with them."""

    text: str
    complaints: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Filled(complaints={self.complaints!r})"


def has_variable(text: str) -> bool:
    """``text`` has a ``${`` that isn't escaped."""
    return any(found[0] != "$${" for found in _TOKEN.finditer(text))


def fill(text: str, environ: Mapping[str, str]) -> Filled:
    """``text`` with its variables; a variable that is unset, empty or unprintable is a complaint."""
    complaints: list[str] = []

    def one(found: re.Match[str]) -> str:
        if found[0] == "$${":
            return "${"
        if found["odd"]:
            complaints.append("`${` must be followed by a name and `}`; write `$${` for the text")
            return ""
        value = environ.get(found["name"])
        if complaint := _complaint(found["name"], value):
            complaints.append(complaint)
        return value or ""

    return Filled(_TOKEN.sub(one, text), tuple(dict.fromkeys(complaints)))


def _complaint(name: str, value: str | None) -> str | None:
    if value is None:
        return f"the environment variable `{name}` is not set"
    if not value.strip():
        return f"the environment variable `{name}` is empty"
    if not value.isprintable():
        return (
            f"the environment variable `{name}` has a line break or another unprintable character"
        )
    return None
