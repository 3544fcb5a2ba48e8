"""A request's head, and how it is known when it comes again.

A client that keeps its connection sends the same head with each request, but for the body's length: its method, its
path, its key and whatever its SDK adds don't change. So what was parsed and screened once is kept with the
connection, and a head whose bytes are the same, before the length and behind it, is that head. Nothing is taken on
trust: only what the parser took is known, and what it takes with one length it takes with another.

HTTP/2 remembers heads for the same reason (RFC 7541).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
from aiohttp import HttpVersion11, hdrs
from multidict import istr

if TYPE_CHECKING:
    from aiohttp.http import RawRequestMessage

    from router.server.routes import Route

_REQUEST_ID_HEADER = istr("X-Request-Id")  # looked up without being folded to lower case anew
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""What a client may call its request: safe in headers and logs."""

EMPTY_LINE = b"\r\n\r\n"
"""And the end of the line before it."""
_LENGTH_LINE = b"\r\ncontent-length: "
_MAX_DIGITS = 10
"""Of a body's length; longer ones are the parser's."""


class Head(msgspec.Struct, eq=False):
    """What it says."""

    method: str
    target: str
    """Path and query, as they were sent."""
    version: tuple[int, int]
    headers: Mapping[str, str]
    """By name in any case. Of a head that came again ``content-length`` is another's."""
    chunked: bool
    length: int
    """Of the first body that it came with, 0 for one in chunks."""
    reusable: bool
    """Another request may follow on this connection, as far as the client says."""
    request_id: str | None
    """What the client calls its request."""
    authorization: str | None
    route: Route | None = None
    """Who serves it, once all that the head alone decides was decided in its favour."""
    rest: str = ""
    """What the path has after the route's; percent-decoded."""
    before: bytes = b""
    """The head's bytes up to its length; empty where it isn't known again."""
    after: bytes = b""
    """Those behind it, up to the empty line."""

    def learn(self, data: bytes) -> bool:
        """Know the head again, with which ``data`` begins; whether it can be known."""
        head = data.partition(EMPTY_LINE)[0]
        at = head.lower().find(_LENGTH_LINE)
        start = at + len(_LENGTH_LINE)
        stop = start + len(b"%d" % self.length)
        self.before, self.after = head[:start], head[stop:]
        return at >= 0 and head == b"%b%d%b" % (self.before, self.length, self.after)

    def body_in(self, data: bytes) -> bytes | None:
        """The body, where ``data`` is this head again and all of a body, of any length but 0; None where it isn't."""
        head, _, body = data.partition(EMPTY_LINE)
        if body and head == b"%b%d%b" % (self.before, len(body), self.after):
            return body
        return None

    def begin_in(self, data: bytes) -> tuple[int, bytes]:
        """The length of the body, and its beginning, where ``data`` begins with this head; 0 where it doesn't."""
        head, line, body = data.partition(EMPTY_LINE)
        digits = head[len(self.before) : len(head) - len(self.after)]
        if line and len(digits) <= _MAX_DIGITS and digits.isdigit():
            length = int(digits)
            if head == b"%b%d%b" % (self.before, length, self.after):
                return length, body
        return 0, b""


def head_of(message: RawRequestMessage) -> Head:
    """What the parser read."""
    headers = message.headers
    length = headers.get(hdrs.CONTENT_LENGTH)
    asked = headers.get(_REQUEST_ID_HEADER)
    return Head(
        message.method,
        message.path,
        message.version,
        headers,
        bool(message.chunked),
        0 if length is None else int(length),
        not message.should_close and not message.upgrade and message.version == HttpVersion11,
        asked if asked is not None and _REQUEST_ID.fullmatch(asked) else None,
        headers.get(hdrs.AUTHORIZATION),
    )
