"""Responses that are read without the parser are those that it reads, in the same way."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.backends.http.connection import State
from router.backends.http.head import Heads
from router.errors import Fault
from tests.backends.http.fakes import Wire, drain

NAMES = [
    b"content-length", b"Content-Length", b"transfer-encoding", b"connection", b"Proxy-Connection", b"upgrade", b"x",
    b"date", b"content-type", b"x-request-id", b"X-RateLimit-Remaining-Tokens", b"content-encoding", b"keep-alive",
    b"set-cookie", b"trailer", b"x!#$%&'*+.^_`|~", b"x y", b"", b"x\x00", b"x\xe9", b" x", b"x\t",
]  # fmt: skip
VALUES = [
    b"5", b"05", b"6", b"+5", b"5, 5", b"5 ", b" 5", b"-1", b"0x5", b"5\t", b"0" * 20 + b"5", b"9" * 30, b"0", b"",
    b"5;a", b"chunked", b"identity", b"gzip", b"close", b"keep-alive", b"Keep-Alive", b"keep-alive, close", b"upgrade",
    b"h2c", b"text/event-stream", b"a\x00b", b"a\rb", b"a\nb", b"a\r\n b", b"a\r\n\tb", b"\xc3\xa9", b"a\x7fb",
    b"a\x0bb", b"\tx", b"x" * 2000,
]  # fmt: skip
STATUS_LINES = [
    b"HTTP/1.1 200 OK", b"HTTP/1.1 404 Not Found", b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 Not Modified",
    b"HTTP/1.1 200 ", b"HTTP/1.1 200", b"HTTP/1.0 200 OK", b"HTTP/2.0 200 OK", b"HTTP/1.1 205 x", b"HTTP/1.1 100 x",
    b"http/1.1 200 OK", b"HTTP/1.1  200 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1 200 O\x00K", b"HTTP/1.1 200 O\rK",
    b"HTTP/1.1 200 \xe9", b" HTTP/1.1 200 OK", b"\r\nHTTP/1.1 200 OK", b"HTTP/1.1 200 O\tK", b"HTTP/1.1 101 x",
]  # fmt: skip

SPACES = [b": ", b":", b" : ", b":  "]

usual = st.tuples(
    st.just(b"content-length"), st.just(b": "), st.sampled_from([b"5", b"05", b"4", b"6"])
)
odd = st.tuples(st.sampled_from(NAMES), st.sampled_from(SPACES), st.sampled_from(VALUES))
lines = st.lists(st.one_of(usual, odd), max_size=4)
responses = st.builds(
    lambda status, fields, end, body: b"".join(
        [status, b"\r\n", *(b"%b%b%b%b" % (*one, end) for one in fields), b"\r\n", body]
    ),
    st.one_of(st.just(b"HTTP/1.1 200 OK"), st.sampled_from(STATUS_LINES)),
    lines,
    st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b" \r\n", b"\r\n\r\n"]),
    st.sampled_from([b"hello", b"hell", b"", b"helloHTTP/1.1 200 OK", b"5\r\nhello\r\n0\r\n\r\n"]),
)


class Unread(Heads):
    """Leaves all to the parser."""

    def whole(self, data):
        return None


async def told(heads: Heads, answers: list[bytes]) -> list[object]:
    """What became of ``answers`` to one request after the other, and of their connection."""
    wire = Wire()
    wire.owner.heads = heads
    found: list[object] = []
    for data in answers:
        exchange = wire.send()
        wire.answer(data)
        if wire.connection.state is not State.CLOSED and not exchange.closed:
            wire.connection.connection_lost(None)
        try:
            found.append(await drain(exchange))
        except Fault as fault:
            found.append(str(fault))
        found.append((dict(exchange.headers), dict(exchange.limits), wire.owner.said.copy()))
        found.append(wire.connection.state)
        if wire.connection.state is not State.IDLE:
            break
    return found


PLAIN = b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 5\r\nx: y\r\n\r\nhello"


@pytest.mark.parametrize("name", NAMES)
async def test_no_header_is_read_in_another_way(name):
    for space, value in itertools.product(SPACES, VALUES):
        line = name + space + value
        for replaced in (b"x: y", b"content-length: 5", b"date: now"):
            odd = PLAIN.replace(replaced, line)
            answers = [PLAIN, odd, PLAIN]
            assert await told(Heads(), answers) == await told(Unread(), answers), odd


@pytest.mark.parametrize("status_line", STATUS_LINES)
async def test_no_status_is_read_in_another_way(status_line):
    odd = PLAIN.replace(b"HTTP/1.1 200 OK", status_line)
    for answers in ([odd, PLAIN], [PLAIN, odd, PLAIN]):
        assert await told(Heads(), answers) == await told(Unread(), answers)


@given(st.lists(st.one_of(responses, st.just(PLAIN)), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_without_the_parser_all_is_as_with_it(answers):
    with_it = asyncio.run(told(Unread(), answers))
    assert asyncio.run(told(Heads(), answers)) == with_it


@given(
    st.lists(st.sampled_from([b"a: 1", b"x-ratelimit-limit-requests: 9", b"b: \xff"]), max_size=3)
)
@settings(deadline=None)
def test_plain_responses_need_no_parser(some):
    heads = Heads()
    for size in (5, 0, 12):
        for date in (b"one", b"one", b"two"):
            lines = [b"HTTP/1.1 200 OK", b"Date: " + date, *some, b"Content-Length: %d" % size]
            data = b"\r\n".join([*lines, b"", b"x" * size])
            found = heads.whole(data)
            assert found is not None
            head, body = found
            assert body == b"x" * size
            assert head.limits.get("date") == (date.decode() if head.limits else None)


@pytest.mark.parametrize("more", [b"", b"x"])
def test_what_is_not_all_there_is_left_to_the_parser(more):
    heads = Heads()
    for _ in range(2):
        assert heads.whole(PLAIN[:-1] if not more else PLAIN + more) is None
        assert heads.whole(PLAIN) is not None
