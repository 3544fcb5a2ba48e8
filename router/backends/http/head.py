"""What the router reads of a response's head: how the body ends, the headers that it keeps, and what is said of limits.

Limits are kept apart: they are our account's at the provider, and no client's business. Everything that isn't on a list
is dropped here, so that no cookie or internal header of a provider can reach a client by way of a later mistake.

A response that came in one piece is read here without the parser (`Heads`), where its head is of the plain sort:
HTTP/1.1, one content-length, each line a name, a colon, a space and a value of printable characters. It is stricter
than the parser in everything, and what it doesn't take the parser does, from the first byte: so nothing is let in by it
that the parser would refuse, and nothing is read in another way.

Source: RFC 9112, sections 2 to 6 (a message's lines, how a body's length is told) and 9.3 (persistence); RFC 9110,
section 8.4 (content codings).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

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


_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5]\d\d) [\t -~\x80-\xff]*\r\n")
_PLAIN_LINE = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([!-~\x80-\xff][\t -~\x80-\xff]*)(?<![ \t])\r\n"
)
_BODILESS = frozenset({204, 304})
"""Statuses that no body follows, whatever length is told."""
_PERSISTENCE = frozenset({"connection", "proxy-connection"})
_PARSERS = frozenset({"transfer-encoding", "upgrade"})
"""Headers that only the parser reads."""
_LENGTH_NAME_BYTES = len("content-length: ")
_LENGTH_DIGITS = 15
"""More than any memory holds."""

Field = tuple[bytes, bytes]
Use = Literal["framing", "date", "limit", "kept"]


class Head(Struct, frozen=True):
    """A response's head."""

    status: int
    headers: Mapping[str, str]
    """The allow-listed ones, names in lower case."""
    limits: Mapping[str, str]
    """Those that tell of the provider's limits, and its date; empty where none does."""
    framed: bool
    """It says where the body ends; if not, the end of the connection does."""


class Refused(Exception):  # noqa: N818 - never leaves this package
    """A response that the parser would take and we don't."""


class Heads:
    """Responses of one origin that came in one piece, read line by line beside the last one's.

    Of a server's heads nearly all have the same lines but for the length, and the date once a second: of such a head
    nothing but its length is read.
    """

    __slots__ = ("_head", "_length_at", "_length_name", "_lines")

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        """The last head's, but for the one that tells the length."""
        self._length_at = 0
        """Which one that was."""
        self._length_name = b""
        self._head = Head(0, {}, {}, framed=True)

    def whole(self, data: bytes) -> tuple[Head, bytes] | None:
        """The head and the body of ``data``, one response and nothing else; None where the parser has to tell."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return None
        lines = data[:end].split(b"\r\n")
        at = self._length_at
        if at < len(lines):
            line = lines.pop(at)
            digits = line[_LENGTH_NAME_BYTES:]
            if (
                lines == self._lines
                and line[:_LENGTH_NAME_BYTES] == self._length_name
                and digits.isdigit()
                and len(digits) <= _LENGTH_DIGITS
            ):
                body = data[end + 4 :]
                return (self._head, body) if len(body) == int(digits) else None
        return self._read(data, end)

    def _read(self, data: bytes, end: int) -> tuple[Head, bytes] | None:
        """As `whole`, of a head that is none of the last one's kind; ``end``: of its last line."""
        status_line = _STATUS_LINE.match(data)
        if status_line is None or int(status_line[1]) in _BODILESS:
            return None
        start = status_line.end()
        fields: list[Field] = _PLAIN_LINE.findall(data, start, end + 2)
        if sum(len(name) + len(value) + 4 for name, value in fields) != end + 2 - start:
            return None  # a line is of another sort
        at = _plain_length(fields)
        if at is None or len(data) != end + 4 + int(fields[at][1]):
            return None
        try:
            head = read_head(int(status_line[1]), fields)
        except Refused:
            return None  # by the parser's way, with its words
        self._lines = data[:end].split(b"\r\n")
        self._length_at = 1 + at
        self._length_name = self._lines.pop(1 + at)[:_LENGTH_NAME_BYTES]
        self._head = head
        return head, data[end + 4 :]


def _plain_length(fields: Sequence[Field]) -> int | None:
    """Which of ``fields`` tells the body's length; None where not exactly one does, or another has a say in it."""
    found: int | None = None
    for at, (raw_name, value) in enumerate(fields):
        name = _use(raw_name)[1]
        if name == "content-length":
            if found is not None or not value.isdigit() or len(value) > _LENGTH_DIGITS:
                return None
            found = at
        elif name in _PARSERS or (name in _PERSISTENCE and value.lower() != b"keep-alive"):
            return None
    return found


def read_head(status: int, fields: Sequence[Field]) -> Head:
    """What is kept of ``fields``. Raises Refused."""
    if len(fields) > MAX_HEADERS:
        raise Refused("too many headers")
    headers: dict[str, str] = {}
    limits: dict[str, str] = {}
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
    return Head(status, headers, limits, framed)


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
