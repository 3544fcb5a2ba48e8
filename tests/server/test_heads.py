"""A head that comes again is what it was, and nothing else is taken for it."""

import asyncio
import itertools
import random

import pytest

from router.server import connection as connections
from router.server.connection import Gate, Limits
from router.server.exchange import BrokenBody
from router.server.heads import Head
from tests.server.test_connection import Transport, turns

HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n"


def request(body: bytes, head: str = HEAD, length: object = None, tail: str = "") -> bytes:
    size = len(body) if length is None else length
    return f"{head}Content-Length: {size}\r\n{tail}\r\n".encode() + body


class Closable(Transport):
    def write_eof(self):
        pass


class Server:
    """Keeps what was asked, and answers at once."""

    def __init__(self) -> None:
        self.asked = []
        self.heads = []
        self.known = 0
        self.gate = Gate(self._serve, Limits(max_connections=9, max_body_bytes=100_000))
        self.connection = self.gate()
        self.transport = Closable(self.connection)
        self.connection.connection_made(self.transport)

    async def _serve(self, exchange) -> None:
        head = exchange.head
        self.known += any(head is one for one in self.heads)
        self.heads.append(head)
        headers = {k.lower(): v for k, v in head.headers.items() if k.lower() != "content-length"}
        try:
            body = exchange.body_in_hand()
            if body is None:
                body = await exchange.payload.read()
        except BrokenBody:
            body = None
        exchange.body_read = True
        self.asked.append((head.method, head.target, head.version, headers, head.request_id, body))
        exchange.answer(200, b"{}")

    async def get(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.connection.data_received(piece)
            await turns()

    @property
    def bodies(self) -> list[bytes]:
        return [one[-1] for one in self.asked]


async def test_a_head_that_comes_again_is_known_whatever_its_length():
    server = Server()
    await server.get(*(request(b"x" * n) for n in (5, 5, 1, 10, 99_000)))
    assert [len(body) for body in server.bodies] == [5, 5, 1, 10, 99_000]
    assert server.known == 4
    assert all(one[:-1] == server.asked[0][:-1] for one in server.asked)
    assert server.transport.written.count(b"HTTP/1.1 200") == 5


@pytest.mark.parametrize(
    "other",
    [
        request(b"x", HEAD.replace("POST", "PUT")),
        request(b"x", HEAD.replace("k\r", "l\r")),
        request(b"x", HEAD + "X-Request-Id: 2\r\n"),
        request(b"x", tail="X: y\r\n"),
        request(b"x", HEAD.lower().replace("post", "POST").replace("http/", "HTTP/")),
        request(b"x", length="01"),
        request(b"x", length=" 1"),
        request(b"x", length="1 "),
        b"\r\n" + request(b"x"),
    ],
)
async def test_another_head_is_parsed_and_the_first_is_known_again(other):
    server = Server()
    await server.get(request(b"abc"), request(b"abc"), other)
    assert server.known == 1
    assert server.bodies == [b"abc", b"abc", b"x"]
    method, _, _, headers, name, _ = server.asked[2]
    assert (method == "PUT", headers["authorization"] == "Bearer l") == (
        b"PUT" in other, b"Bearer l" in other,
    )  # fmt: skip
    assert headers.get("x-request-id") == name == ("2" if b"X-Request-Id" in other else None)


@pytest.mark.parametrize(
    "length", ["+1", "-1", "1_0", "1\t", "0x1", "\u0661", "1\r\nContent-Length: 1", "1, 1", ""]
)
async def test_a_length_that_is_none_is_malformed_behind_a_known_head_too(length):
    server = Server()
    bad = request(b"x", length=length)
    await server.get(request(b"x"), request(b"x"), bad)
    fresh = Server()
    await fresh.get(bad)
    assert server.bodies[2:] == fresh.bodies
    assert server.connection.broken == fresh.connection.broken
    server.connection.connection_lost(None)
    fresh.connection.connection_lost(None)


async def test_a_known_head_in_the_middle_of_a_body_is_body():
    """What a smuggler would send through a proxy that shares the connection."""
    again = request(b"stolen")
    server = Server()
    await server.get(request(b"a"), request(b"b"))
    outer = request(b"", length=len(again) + 4)
    await server.get(outer, b"1234", again, request(b"c"))
    assert server.bodies == [b"a", b"b", b"1234" + again, b"c"]


@pytest.mark.parametrize("line", ["Content-Length:1", "Content-Length:  1", "Content-Length : 1"])
async def test_a_length_written_otherwise_is_looked_for_nowhere_else(line):
    at = len("\r\ncontent-length: ") - 1
    for before in range(at - 8, at + 8):
        head = f"POST /{'v' * (before - 6)}{{}} HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n"
        server, fresh = Server(), Server()
        other = head.format("9").encode() + b"x" * 9
        await server.get(head.format("1").encode() + b"x", other)
        await fresh.get(other)
        assert (server.known, server.asked[1:]) == (0, fresh.asked)


def as_long_as(other: bytes, head: str = HEAD) -> bytes:
    """A whole request of as many bytes."""
    one = request(b"s" * (len(other) - len(request(b"", head, length=1))), head)
    assert len(one) == len(other)
    return one


async def test_empty_lines_before_a_head_dont_hide_where_its_body_ends():
    server = Server()
    await server.get(*(request(b"u", HEAD + f"X: {n}\r\n") for n in range(3)), request(b"a"))
    outer = request(b"", length=1000)
    again = as_long_as(outer)
    rest = b"x" * (1000 - len(again))
    await server.get(b"\r\n\r\n" + outer, rest, again, request(b"c"))
    assert server.bodies[3:] == [b"a", rest + again, b"c"]


async def test_what_stands_in_a_body_is_never_learned_for_the_head_behind_it():
    """Else who has no key could say in a body which head stands for another's."""
    theirs = HEAD.replace("Bearer k", "Bearer f")
    head, fake = request(b"", length=200), request(b"", theirs, length=200)
    again = as_long_as(head, theirs)
    rest = b"x" * (200 - len(again))
    server = Server()
    await server.get(request(b"", length=len(fake)), fake + head, rest, again, again)
    assert server.bodies == [fake, rest + again, again.partition(b"\r\n\r\n")[2]]
    assert [one[3]["authorization"] for one in server.asked] == ["Bearer k"] * 2 + ["Bearer f"]


async def test_a_known_head_instead_of_a_chunk_is_malformed():
    server = Server()
    await server.get(request(b"a"), request(b"b"))
    await server.get((HEAD + "Transfer-Encoding: chunked\r\n\r\n").encode(), request(b"c"))
    assert server.connection.broken
    assert server.bodies == [b"a", b"b", None]
    server.connection.connection_lost(None)


async def test_a_known_head_in_the_middle_of_a_chunk_is_body():
    again = request(b"stolen")
    server = Server()
    await server.get(request(b"a"), request(b"b"))
    chunked = (HEAD + f"Transfer-Encoding: chunked\r\n\r\n{len(again):x}\r\n").encode()
    await server.get(chunked, again, b"\r\n0\r\n\r\n", request(b"c"))
    assert server.bodies == [b"a", b"b", again, b"c"]


async def test_a_known_head_in_the_middle_of_a_head_is_head():
    again = request(b"stolen")
    server = Server()
    await server.get(request(b"a"), request(b"b"))
    await server.get(b"GET /?", again)
    assert server.connection.broken
    server.connection.connection_lost(None)


async def test_a_known_head_whose_body_comes_later():
    server = Server()
    whole = request(b"hello")
    await server.get(whole, whole[:-5], b"he", b"llo", whole[:-1], b"o" + whole, whole)
    assert server.bodies == [b"hello"] * 5
    assert server.known == 4


@pytest.mark.parametrize("body", [b"", b"x", b"0123456789", b"\r\n\r\n" * 3])
@pytest.mark.parametrize("zeros", ["", "0"])
async def test_a_known_head_may_be_cut_anywhere(body, zeros):
    """Also where a head without its last digits, or without its empty line, looks like a whole one."""
    whole = request(body, length=f"{zeros}{len(body)}")
    for first in range(len(whole)):
        for second in {first, min(first + 1, len(whole)), (first + len(whole)) // 2}:
            server = Server()
            cut = whole[:first], whole[first:second], whole[second:]
            await server.get(request(b"a"), *(piece for piece in cut if piece), request(b"b"))
            assert server.bodies == [b"a", body, b"b"], cut


async def test_a_body_that_never_comes_doesnt_keep_its_connection():
    server = Server()
    await server.get(request(b"hello"), request(b"hello")[:-1])
    server.connection.connection_lost(None)
    await turns()
    assert server.bodies == [b"hello"]
    assert not server.gate.connections


async def test_who_sends_another_head_each_time_isnt_looked_at_any_more():
    server = Server()
    learned = []
    learn = Head.learn

    def count(head, data):
        learned.append(head)
        return learn(head, data)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Head, "learn", count)
        await server.get(*(request(b"x", HEAD + f"X-Request-Id: r{n}\r\n") for n in range(50)))
    assert [one[4] for one in server.asked] == [f"r{n}" for n in range(50)]
    assert len(learned) == connections.MAX_UNLIKE


@pytest.mark.parametrize(
    "line", ["Connection: close\r\n", "Upgrade: h2c\r\nConnection: upgrade\r\n"]
)
async def test_the_last_head_is_not_known_again(line):
    server = Server()
    await server.get(request(b"x", HEAD + line), request(b"x", HEAD + line))
    assert server.bodies == [b"x"]
    assert b"connection: close" in server.transport.written


# The same bytes, in the same segments, to a connection that knows heads and to one that never does.


def whole_requests(rng: random.Random) -> bytes:
    body = rng.choice([b"", b"x", b"0123456789", request(b"in"), b"\r\n\r\n", b"y" * 200])
    head = HEAD
    for line in ("X-Request-Id: r7\r\n", "X: y\r\n", "Expect: 100-continue\r\n"):
        if rng.random() < 0.03:
            head += line
    kind = rng.random()
    if kind < 0.85:
        return request(body, head)
    if kind < 0.88:
        return request(body, head, tail="X-After: z\r\n")
    if kind < 0.92:
        return b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    if kind < 0.94:
        chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        return (head + "Transfer-Encoding: chunked\r\n\r\n").encode() + chunk + b"0\r\n\r\n"
    if kind < 0.97:
        return request(body, head, length=f"0{len(body)}")
    return b"\r\n" * rng.randint(1, 2) + request(body, head)


def mutated(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    what = rng.randrange(5)
    if what == 0:
        return data[:at] + bytes([rng.choice(b"\r\n\0 :,;+-0129aZ\x80\xff\t")]) + data[at + 1 :]
    if what == 1:
        return data[:at] + data[at + 1 :]
    if what == 2:
        return data[:at] + bytes([rng.choice(b"\r\n 0:")]) + data[at:]
    if what == 3:
        more = [b"\r\n", b"\r\n\r\n", b"\r\n ", b"Content-Length: 1\r\n"]
        return data[:at] + rng.choice(more) + data[at:]
    return data[:at] + data[rng.randrange(len(data)) :]


def segments(rng: random.Random, requests: list[bytes]) -> list[bytes]:
    """Mostly a request each, as clients send them; else anywhere."""
    if rng.random() < 0.5:
        return requests
    data = b"".join(requests)
    ends = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randint(0, 6)))
    edges = [0]
    for one in requests:
        edges.append(edges[-1] + len(one))
    cuts = sorted({*ends, *(edge for edge in edges if rng.random() < 0.8), 0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(cuts)]


@pytest.mark.parametrize("seed", range(40))
async def test_knowing_heads_changes_nothing(seed):
    rng = random.Random(seed)
    known = 0
    for _ in range(25):
        requests = [whole_requests(rng) for _ in range(rng.randint(2, 8))]
        if rng.random() < 0.5:
            n = rng.randrange(len(requests))
            requests[n] = mutated(rng, requests[n])
        pieces = segments(rng, requests)
        knows, parses = Server(), Server()
        with pytest.MonkeyPatch.context() as patched:
            await knows.get(*pieces)
            patched.setattr(connections, "MAX_UNLIKE", 0)
            await parses.get(*pieces)
        assert knows.asked == parses.asked, pieces
        ours, theirs = knows.connection, parses.connection
        assert (ours.broken, ours.deaf, ours.closed) == (theirs.broken, theirs.deaf, theirs.closed)
        assert knows.transport.written.count(b"HTTP/1.1 ") == parses.transport.written.count(b"HTTP/1.1 ")  # fmt: skip
        assert not parses.known
        known += knows.known
        for one in (ours, theirs):
            one.connection_lost(None)
        await turns()
    assert known
    assert len(asyncio.all_tasks()) == 1
