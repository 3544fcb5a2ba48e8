"""What the router reads of a response's head: how the body ends, the headers that it keeps, and what is said of limits.

Limits are kept apart: they are our account's at the provider, and no client's business. Everything that isn't on a list
is dropped here, so that no cookie or internal header of a provider can reach a client by way of a later mistake.

Source: RFC 9112, section 6 (how a body's length is told); RFC 9110, section 8.4 (content codings).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

MAX_HEADERS = 128
"""No provider seen sends more than 40; above this it is an attack or a bug."""

MAX_HEAD_BYTES = 64 * 1024
"""Bytes that may come in a row without any of them being body: heads, trailers, chunk extensions."""

MAX_VALUE_BYTES = 1024
"""A longer header value is left out: no rate limit, request id or content type needs as much."""

_KEPT = frozenset(
    {"content-type", "retry-after", "retry-after-ms", "x-request-id", "x-should-retry"}
)
_KEPT_PREFIXES = ("openai-",)
_LIMIT_PREFIXES = ("x-ratelimit", "ratelimit", "anthropic-ratelimit-", "x-tokenlimit-")
_DATE = "date"
"""Kept beside limits, which may be told as times on the provider's clock."""
_READ = {
    "content-length": None,  # The parser has checked it and counts.
    "transfer-encoding": b"chunked",
    "content-encoding": b"identity",
}


Use = Literal["framing", "date", "limit", "kept"]


class Refused(Exception):  # noqa: N818 - never leaves this package
    """A response that the parser would take and we don't."""


def read_head(
    fields: Sequence[tuple[bytes, bytes]], headers: dict[str, str], limits: dict[str, str]
) -> bool:
    """Put what is kept of ``fields`` into ``headers`` and ``limits``, names in lower case. Raises Refused.

    Returns whether the head says where the body ends; if not, the end of the connection does.
    """
    if len(fields) > MAX_HEADERS:
        raise Refused("too many headers")
    framed = False
    size = 0
    date = b""
    for raw_name, value in fields:
        size += len(raw_name) + len(value)
        use, name = _use(raw_name)
        if use is None:
            continue
        if use == "framing":
            framed = _framing(name, value) or framed
        elif use == "date":
            date = value
        elif len(value) <= MAX_VALUE_BYTES and value.isascii():
            text = value.decode("ascii")
            if text.isprintable():
                (limits if use == "limit" else headers)[name] = text
    if limits:
        limits[_DATE] = date.decode("latin-1")
    if size > MAX_HEAD_BYTES:
        raise Refused("too long a head")
    return framed


@functools.lru_cache(maxsize=512)
def _use(name: bytes) -> tuple[Use | None, str]:
    """What a header is for, and its name in lower case; a provider's few names are the same in every answer."""
    lower = name.decode("latin-1").lower()
    if lower in _READ:
        return "framing", lower
    if lower == _DATE:
        return "date", lower
    if lower.startswith(_LIMIT_PREFIXES):
        return "limit", lower
    return "kept" if lower in _KEPT or lower.startswith(_KEPT_PREFIXES) else None, lower


def _framing(name: str, value: bytes) -> bool:
    wanted = _READ[name]
    if wanted is not None and value.lower() != wanted:
        raise Refused(f"a {name} that nobody asked for")
    return name != "content-encoding"
