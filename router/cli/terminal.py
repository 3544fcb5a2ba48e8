"""What a terminal may be sent: text without control characters, and dim or bold only where somebody looks."""

from __future__ import annotations

import os
from typing import TextIO

_KEPT = "\n\t"


def clean(text: str) -> str:
    """``text`` without what could move the cursor, recolour or retitle the terminal; lines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c in _KEPT or c.isprintable() else "\ufffd" for c in text)


def is_styled(stream: TextIO) -> bool:
    """``stream`` is a terminal, and nobody asked for no colours. Source: https://no-color.org."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def dim(text: str, stream: TextIO) -> str:
    """``text``, less bright where ``stream`` can."""
    return f"\x1b[2m{text}\x1b[0m" if is_styled(stream) else text


def bold(text: str, stream: TextIO) -> str:
    """``text``, brighter where ``stream`` can."""
    return f"\x1b[1m{text}\x1b[0m" if is_styled(stream) else text
