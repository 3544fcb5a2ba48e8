"""What a JSON decoder lets through and two readers may read differently: parameters given twice, bytes that are no
UTF-8 where nobody decodes them.

Of a parameter given twice most decoders take the last, some the first: the router and an upstream could see two
different requests. Inside of a parameter it is the upstream's business, as all that passes byte for byte.

The usual request is told by counting its quotes (in `rules`): each string of a JSON text has two, an escaped one adds
to them, so a body with as many as its parameters need has no parameter twice. Others are as long as their parameters
are, and only what is spaced in an unusual way is walked from parameter to parameter, comparing whole values.

Source: RFC 8259, sections 4 (names should be unique) and 8.1 (UTF-8).
"""

from __future__ import annotations

import re
from typing import cast

import msgspec
from msgspec import Raw

_NAME = re.compile(rb'[\s,]*("[^"\\]*(?:\\.[^"\\]*)*")\s*:\s*')
_decoder = msgspec.json.Decoder(dict[str, Raw])
_name = msgspec.json.Decoder(str)


def fields(body: bytes) -> dict[str, Raw]:
    """The parameters of a JSON object. Raises msgspec.DecodeError."""
    return _decoder.decode(body)


def repeated(body: bytes) -> str | None:
    """A parameter that ``body``, a JSON object, has twice; None if there is none. Raises msgspec.DecodeError."""
    values = _decoder.decode(body)
    spaces = (
        len(body) - sum(map(len, values)) - sum(map(len, values.values())) - 4 * len(values) - 1
    )
    if spaces == 0 or (spaces == 2 * len(values) - 1 and body == _spaced(values)):
        return None  # Exactly these parameters, without spaces or with those that Python's json writes.
    return _walk(body, values)


def _spaced(values: dict[str, Raw]) -> bytes:
    pieces: list[bytes | Raw] = []
    for name, value in values.items():
        pieces += (b', "' if pieces else b'{"', name.encode(), b'": ', value)
    return b"".join(cast("list[bytes]", [*pieces, b"}"]))


def _walk(body: bytes, values: dict[str, Raw]) -> str | None:
    seen: set[str] = set()
    name = ""
    at = body.index(b"{") + 1
    while found := _NAME.match(body, at):
        written = found[1]
        name = _name.decode(written) if b"\\" in written else written[1:-1].decode()
        if name in seen:
            return name
        seen.add(name)
        value = bytes(values[name])
        at = found.end()
        if not body.startswith(value, at):
            return name  # The value that counts is a later one.
        at += len(value)
    # A value that begins like a later one of the same name ends the walk too early.
    return None if body[at:].strip() == b"}" else name
