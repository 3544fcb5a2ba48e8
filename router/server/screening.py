"""What is refused from a request's head alone, before anybody is asked who sent it.

The parser (llhttp, strict) refuses by itself: both framing headers at once, two lengths, signs and spaces in them,
bare LF, folded lines, NUL and CR, a line or a count above its limits, an HTTP/1.1 request without a Host. What it
lets through and a proxy in front might read otherwise is refused here.

Source: RFC 9112 sections 3.2, 6.1 and 6.3; RFC 9110 section 7.2.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Protocol

from aiohttp import HttpVersion11, hdrs

from router.errors import ApiError, ErrorObject, invalid_request

_HOST = re.compile(r"(?:[A-Za-z0-9._~%!$&'()*+,;=-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
"""RFC 3986's host and port: nothing that could start a path, a query, a fragment or user information."""


class Head(Protocol):
    """What is read of a parsed request."""

    @property
    def method(self) -> str: ...  # noqa: D102 - as in aiohttp's RawRequestMessage
    @property
    def target(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def headers(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def chunked(self) -> bool: ...  # noqa: D102


def malformed() -> ApiError:
    """400 with a constant body: what was sent must not come back, for it may hold a key."""
    return invalid_request("The request is not well-formed HTTP.")


def screen(head: Head) -> None:
    """Refuse what must not be routed. Raises ApiError: 400, 415 or 505."""
    headers = head.headers
    if not head.target.startswith("/"):
        raise malformed()  # absolute-form, authority-form, *: this is no proxy
    host = headers.get(hdrs.HOST)
    if host is not None and not _is_host(host):
        raise malformed()
    if head.version != HttpVersion11:
        _screen_version(head)
    if head.chunked and headers[hdrs.TRANSFER_ENCODING].lower() != "chunked":
        raise malformed()
    coding = headers.get(hdrs.CONTENT_ENCODING)
    if coding is not None and coding.lower() != "identity":
        raise unsupported("This server takes request bodies without content-encoding only.")


@functools.lru_cache(maxsize=256)
def _is_host(text: str) -> bool:
    return _HOST.fullmatch(text) is not None


def _screen_version(head: Head) -> None:
    if head.version != (1, 0):
        error = ErrorObject("This server speaks HTTP/1.1.", "invalid_request_error")
        raise ApiError(505, error)
    if hdrs.TRANSFER_ENCODING in head.headers:
        raise malformed()


def screen_type(headers: Mapping[str, str]) -> None:
    """Refuse a web page's request that a browser sends without asking first. Raises ApiError 415.

    Any content type is taken, as OpenAI does, for the body is read as JSON whatever it is called. A request with
    an Origin is a browser's, and must say application/json: that makes the browser ask first, and no answer of this
    server allows it.
    """
    if hdrs.ORIGIN not in headers:
        return
    kind = headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise unsupported("Requests of web pages must have the content type application/json.")


def unsupported(message: str) -> ApiError:
    """415."""
    return invalid_request(message, status=415)


def too_large(limit_bytes: int) -> ApiError:
    """413."""
    message = f"The request body is larger than {limit_bytes} bytes."
    return invalid_request(message, code="request_too_large", status=413)


def too_slow(limit_s: float) -> ApiError:
    """408."""
    message = f"The request body did not arrive within {limit_s:g} seconds."
    return invalid_request(message, code="request_timeout", status=408)
