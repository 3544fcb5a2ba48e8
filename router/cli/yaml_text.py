"""A few values as YAML that a person may paste into a config: one line a part, quotes only where they are needed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9/_.@+-]*(:[A-Za-z0-9][A-Za-z0-9/_.@+-]*)*")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def scalar(text: str) -> str:
    """A string as a config's reader gives it back: ``${`` is no variable, and a word is no truth value."""
    if _PLAIN.fullmatch(text) and text.casefold() not in _WORDS:
        return text
    return json.dumps(text.replace("${", "$${"), ensure_ascii=False)


def flow(value: object) -> str:
    """A value in one line. Takes what JSON has; numbers stay numbers in YAML, too."""
    if isinstance(value, str):
        return scalar(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(k)}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    text = json.dumps(value)
    # YAML 1.1 takes 1e-05 for a string.
    return text.replace("e", ".0e") if isinstance(value, float) and "." not in text else text
