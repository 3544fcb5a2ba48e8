"""A client's body as an upstream must see it: another model name, usage asked for; every other byte as it came.

The two changes are spliced into the bytes. Inside a JSON string every quote is escaped, so the bytes ``"model"``
can only be a whole string token; if there is exactly one, a colon behind it and the expected name after that, it is
the key. Any doubt (the word as a value, in a nested object, written with escapes, twice) takes the slow way:
decoded one level deep and written again with all values raw. A body that is to have the name that it has needs no look:
it was decoded, and no parameter stands in it twice (`rules`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import msgspec
from msgspec import Raw

from router.wire import outline
from router.wire.chat import LongChatRequest
from router.wire.request import Request

_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]*)"')
_ESCAPED = re.compile(rb"\\u00[5-7]")
"""How a letter of a key, or its underscore, may be written, which no encoder does."""
_decoder = msgspec.json.Decoder(dict[str, Raw])
_USAGE = b'"stream_options":{"include_usage":true},'


def pieces_for_upstream(
    request: Request, body: bytes, model: str, *, ask_usage: bool
) -> Sequence[bytes | memoryview]:
    """As `for_upstream`, where ``request`` was decoded from ``body``; of a long chat what is around the messages is all
    that is looked at and copied.
    """
    if request.model == model and not ask_usage:
        return (body,)
    # isinstance asks a Struct's metaclass: 800 instructions.
    at = request.messages_at if type(request) is LongChatRequest else msgspec.UNSET
    if at is msgspec.UNSET:
        return (for_upstream(body, model, ask_usage=ask_usage),)
    around = for_upstream(outline.around(body, at), model, ask_usage=ask_usage)
    before, behind = outline.halves(around)
    return before, memoryview(body)[at[0] : at[1]], behind


def for_upstream(body: bytes, model: str, *, ask_usage: bool) -> bytes:
    """``body`` with its model replaced and, for ``ask_usage``, stream_options.include_usage set.

    ``body`` must be a JSON object that was decoded as a request before.
    """
    found = _MODEL.search(body)
    if found is None or body.count(b'"model"') != 1 or _ESCAPED.search(body):
        return _slowly(body, model, ask_usage=ask_usage)
    if ask_usage and b'"stream_options"' in body:
        return _slowly(body, model, ask_usage=True)
    name = model.encode()
    if found[1] != name:
        if not _plain(name):
            return _slowly(body, model, ask_usage=ask_usage)
        start, end = found.span(1)
        body = body[:start] + name + body[end:]
    if ask_usage:
        start = body.index(b"{") + 1
        body = body[:start] + _USAGE + body[start:]
    return body


@functools.lru_cache(maxsize=256)
def _plain(name: bytes) -> bool:
    return b'"' not in name and b"\\" not in name and min(name, default=0) >= 0x20


def _slowly(body: bytes, model: str, *, ask_usage: bool) -> bytes:
    fields = _decoder.decode(body)
    fields["model"] = Raw(msgspec.json.encode(model))
    if ask_usage:
        options = {}
        given = fields.get("stream_options")
        if given is not None and bytes(given) != b"null":
            options = _decoder.decode(given)
        options["include_usage"] = Raw(b"true")
        fields["stream_options"] = Raw(msgspec.json.encode(options))
    return msgspec.json.encode(fields)
