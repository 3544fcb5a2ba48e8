"""HTTP as attackers and broken clients speak it."""

import asyncio
import contextlib
import gzip
import json
import logging
import socket
import time

import msgspec
import pytest
import uvloop

from tests.server.fake_router import (
    ANSWER,
    BODY,
    SECRET,
    FakeReply,
    ask,
    connect,
    read_answer,
    request,
    running,
)

AUTH = f"authorization: Bearer {SECRET}\r\n"
POST = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{AUTH}"
GET = f"GET /v1/models HTTP/1.1\r\nhost: x\r\n{AUTH}"
TEXT = BODY.decode()
LENGTH = f"content-length: {len(BODY)}\r\n"
CHUNKED = "transfer-encoding: chunked\r\n"
CHUNKS = f"{len(BODY):x}\r\n{TEXT}\r\n0\r\n\r\n"

MALFORMED = {
    "both framings": POST + LENGTH + CHUNKED + "\r\n" + CHUNKS,
    "two lengths": POST + LENGTH + LENGTH + "\r\n" + TEXT,
    "two lengths in one": POST + f"content-length: {len(BODY)}, {len(BODY)}\r\n\r\n" + TEXT,
    "a signed length": POST + f"content-length: +{len(BODY)}\r\n\r\n" + TEXT,
    "a negative length": POST + "content-length: -1\r\n\r\n",
    "a huge length": POST + "content-length: 99999999999999999999999\r\n\r\n",
    "a space before the colon": POST + f"content-length : {len(BODY)}\r\n\r\n" + TEXT,
    "bare LF": POST.replace("\r\n", "\n") + LENGTH + "\n" + TEXT,
    "one bare LF": GET + "x: y\nz: w\r\n\r\n",
    "a folded line": GET + "x: y\r\n z\r\n\r\n",
    "CR in a header": GET + "x: a\rb\r\n\r\n",
    "NUL in a header": GET + "x: a\0b\r\n\r\n",
    "no colon": GET + "abc\r\n\r\n",
    "no name": GET + ": a\r\n\r\n",
    "HTTP/1.0 with chunks": POST.replace("1.1", "1.0") + CHUNKED + "\r\n" + CHUNKS,
    "identity, chunked": POST + "transfer-encoding: identity, chunked\r\n\r\n" + CHUNKS,
    "gzip, chunked": POST + "transfer-encoding: gzip, chunked\r\n\r\n" + CHUNKS,
    "chunked, gzip": POST + "transfer-encoding: chunked, gzip\r\n\r\n" + CHUNKS,
    "only gzip": POST + "transfer-encoding: gzip\r\n\r\n",
    "xchunked": POST + "transfer-encoding: xchunked\r\n\r\n" + CHUNKS,
    "two codings": POST + CHUNKED + "transfer-encoding: identity\r\n\r\n" + CHUNKS,
    "no chunk size": POST + CHUNKED + "\r\nzz\r\n" + TEXT,
    "a chunk size in C": POST + CHUNKED + "\r\n0x10\r\n" + TEXT,
    "a chunk too long": POST + CHUNKED + "\r\n3\r\nabcdef\r\n0\r\n\r\n",
    "a chunk with LF": POST + CHUNKED + f"\r\n{len(BODY):x}\n{TEXT}\r\n0\r\n\r\n",
    "host with a path": GET.replace("host: x", "host: a/b") + "\r\n",
    "host with a query": GET.replace("host: x", "host: a?b") + "\r\n",
    "host with a fragment": GET.replace("host: x", "host: a#b") + "\r\n",
    "host with a user": GET.replace("host: x", "host: u@b") + "\r\n",
    "host with a space": GET.replace("host: x", "host: a b") + "\r\n",
    "two hosts": GET + "host: b\r\n\r\n",
    "no host": GET.replace("host: x\r\n", "") + "\r\n",
    "absolute form": GET.replace("/v1", "http://x/v1") + "\r\n",
    "no slash": GET.replace("/v1/models", "v1") + "\r\n",
    "asterisk form": GET.replace("GET /v1/models", "OPTIONS *") + "\r\n",
    "CONNECT": GET.replace("GET /v1/models", "CONNECT x:80") + "\r\n",
    "a long header": GET + "x: " + "a" * 9000 + "\r\n\r\n",
    "a long target": GET.replace("/v1", "/" + "a" * 9000) + "\r\n",
    "many headers": GET + "".join(f"x{i}: a\r\n" for i in range(200)) + "\r\n",
    "many trailers": POST
    + CHUNKED
    + "\r\n"
    + CHUNKS[:-2]
    + "".join(f"x{i}: a\r\n" for i in range(200))
    + "\r\n",
    "TLS": "\x16\x03\x01\x02\x00\x01" + SECRET + "\r\n\r\n",
    "HTTP/2": f"PRI * HTTP/2.0\r\n{AUTH}\r\nSM\r\n\r\n",
    "an unknown method": GET.replace("GET", "FOO") + "\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_is_400_constant_and_the_end(name, caplog):
    caplog.set_level(logging.DEBUG)
    async with running() as server:
        reader, writer = await connect(server.url)
        writer.write(MALFORMED[name].encode("latin-1"))
        answer = await asyncio.wait_for(read_answer(reader), 2)
        assert answer.status == 400
        assert answer.headers["content-type"] == "application/json"
        assert answer.closed
        assert answer.error == {
            "message": "The request is not well-formed HTTP.", "type": "invalid_request_error", "param": None,
            "code": None,
        }  # fmt: skip
        rest = await asyncio.wait_for(reader.read(), 2)
        assert rest == b""
        assert not server.router.opened
        writer.close()
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "tail", ["zz\r\n", "0\r\n" + "".join(f"x{i}: a\r\n" for i in range(200)) + "\r\n"]
)
async def test_a_body_that_breaks_midway_is_400_at_once(tail):
    async with running() as server:
        reader, writer = await connect(server.url)
        writer.write((POST + CHUNKED + "\r\n5\r\nabcde\r\n").encode())
        await asyncio.sleep(0.02)
        writer.write(tail.encode())
        answer = await asyncio.wait_for(read_answer(reader), 1)
        assert answer.status == 400
        assert answer.error["message"] == "The request is not well-formed HTTP."
        assert await asyncio.wait_for(reader.read(), 1) == b""
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        POST + LENGTH + "\r\n" + TEXT,
        POST + CHUNKED + "\r\n" + CHUNKS,
        POST + CHUNKED + f"\r\n{len(BODY):x};a=b\r\n{TEXT}\r\n0\r\nx: y\r\n\r\n",
        POST.replace("host: x", "host: [::1]:80") + LENGTH + "\r\n" + TEXT,
        POST + "x: " + "a" * 8100 + "\r\n" + LENGTH + "\r\n" + TEXT,
        POST + "content-encoding: identity\r\n" + LENGTH + "\r\n" + TEXT,
        POST + "content-type: text/weird\r\n" + LENGTH + "\r\n" + TEXT,
        POST + "connection: upgrade\r\nupgrade: websocket\r\n" + LENGTH + "\r\n" + TEXT,
        POST.replace("1.1", "1.0") + LENGTH + "\r\n" + TEXT,
        "\r\n" + POST + LENGTH + "\r\n" + TEXT,
    ],
)
async def test_well_formed_is_served_whole_and_byte_by_byte(data):
    async with running() as server:
        answer = await ask(server.url, data.encode())
        assert (answer.status, answer.body) == (200, ANSWER)
        reader, writer = await connect(server.url)
        for start in range(0, len(data), 40):
            writer.write(data[start : start + 40].encode())
            await asyncio.sleep(0)
            await writer.drain()
        assert (await asyncio.wait_for(read_answer(reader), 5)).body == ANSWER
        writer.close()


async def test_pipelined_requests_are_answered_in_order():
    async with running() as server:
        reader, writer = await connect(server.url)
        writer.write(b"".join(request(headers=f"x-request-id: r{i}\r\n") for i in range(100)))
        for i in range(100):
            answer = await asyncio.wait_for(read_answer(reader), 5)
            assert (answer.status, answer.headers["x-request-id"]) == (200, f"r{i}")
        writer.close()


async def test_http_1_0_closes():
    async with running() as server:
        reader, writer = await connect(server.url)
        writer.write(
            (
                POST.replace("1.1", "1.0") + "connection: keep-alive\r\n" + LENGTH + "\r\n" + TEXT
            ).encode()
        )
        assert (await reader.read()).endswith(ANSWER)
        writer.close()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(b"0" * 1_000_000)),
        ("br", b"x"),
        ("deflate", b"x"),
        ("gzip, gzip", b"x"),
        ("what", b"x"),
    ],
)
async def test_no_content_coding_is_taken(coding, body):
    async with running() as server:
        answer = await ask(server.url, request(body, headers=f"content-encoding: {coding}\r\n"))
        assert answer.status == 415
        assert set(answer.error) == {"message", "type", "param", "code"}


async def test_a_page_must_send_json():
    """A browser asks first before it sends JSON across origins, and nobody here says yes."""
    async with running() as server:
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
        ):
            origin = f"origin: http://evil.example\r\ncontent-type: {kind}\r\n"
            assert (await ask(server.url, request(headers=origin))).status == 415
        origin = "origin: http://evil.example\r\ncontent-type: Application/JSON; charset=utf-8\r\n"
        answer = await ask(server.url, request(headers=origin))
        assert answer.status == 200
        preflight = request(
            b"", method="OPTIONS", key=None, headers="origin: http://evil.example\r\n"
        )
        asked = await ask(server.url, preflight)
        assert asked.status == 405
        for one in (answer, asked):
            assert not [name for name in one.headers if name.startswith("access-control")]


@pytest.mark.parametrize("sent", ["", "GET /v1/mod", GET, GET + "x: y\r\n", POST[:-3]])
async def test_a_dripped_head_is_cut(sent):
    async with running(header_timeout_s=0.3) as server:
        reader, writer = await connect(server.url)
        started = time.monotonic()

        async def drip() -> None:
            writer.write(sent.encode())
            while True:
                await asyncio.sleep(0.05)
                if sent:
                    writer.write(b"a")

        dripping = asyncio.create_task(drip())
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 2) == b""
        assert 0.25 < time.monotonic() - started < 1
        dripping.cancel()
        writer.close()


async def test_a_dripped_second_head_is_cut_and_an_idle_connection_is_not():
    async with running(header_timeout_s=0.2, keep_alive_s=0.8) as server:
        reader, writer = await connect(server.url)
        writer.write(request())
        await read_answer(reader)
        await asyncio.sleep(0.3)
        writer.write(request())
        await read_answer(reader)
        started = time.monotonic()
        writer.write(b"GET /v1")
        assert await asyncio.wait_for(reader.read(), 2) == b""
        assert 0.15 < time.monotonic() - started < 0.6
        writer.close()


async def test_an_idle_connection_is_closed():
    async with running(keep_alive_s=0.3) as server:
        reader, writer = await connect(server.url)
        writer.write(request())
        await read_answer(reader)
        started = time.monotonic()
        assert await asyncio.wait_for(reader.read(), 2) == b""
        assert 0.2 < time.monotonic() - started < 1
        writer.close()


@pytest.mark.parametrize("framing", [f"content-length: {len(BODY)}\r\n", CHUNKED])
async def test_a_stalled_body_is_408_and_the_end(framing):
    async with running(body_timeout_s=0.2) as server:
        reader, writer = await connect(server.url)
        writer.write(f"{POST}{framing}\r\n".encode())
        answer = await asyncio.wait_for(read_answer(reader), 2)
        assert answer.status == 408
        assert answer.error["code"] == "request_timeout"
        assert answer.closed
        writer.close()


async def test_long_bodies_that_come_at_once_are_whole_though_clients_leave():
    texts: dict[str, str] = {}

    async def keep(chat, _body):
        texts[chat.user] = chat.messages[0].content
        return FakeReply([ANSWER], streaming=False)

    def long(number: int) -> tuple[str, bytes]:
        text = f"{number} " * 300_000
        body = {"model": "m", "messages": [{"role": "user", "content": text}], "user": str(number)}
        return text, request(json.dumps(body).encode())

    async with running(keep) as server:
        for _ in range(3):
            _, writer = await connect(server.url)
            writer.write(long(9)[1][:-1])
            await writer.drain()
            writer.transport.abort()
        answers = await asyncio.gather(*(ask(server.url, long(n)[1]) for n in range(8)))
        assert [answer.status for answer in answers] == [200] * 8
        assert texts == {str(n): long(n)[0] for n in range(8)}
        assert (await ask(server.url, request(BODY))).status == 200


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
def test_nothing_that_is_written_waits_for_more(loop):
    async def run():
        async with running() as server:
            reader, writer = await connect(server.url)
            writer.write(request(BODY))
            await read_answer(reader)
            (connection,) = server.serving._gates[0].connections
            sock = connection.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            writer.close()

    loop(run())


async def test_a_long_body_is_413_before_it_is_read():
    async with running(max_body_bytes=1000) as server:
        for data in (
            POST + "content-length: 1001\r\n\r\n",
            POST + "content-length: 18446744073709551615\r\n\r\n",
        ):
            answer = await ask(server.url, data.encode())
            assert answer.status == 413
            assert answer.closed
        answer = await ask(server.url, request(b"x" * 1001))
        assert answer.status == 413
        assert answer.error["code"] == "request_too_large"
        key = await ask(server.url, request(b"x" * 5000, key=None))
        assert key.status == 401


async def test_a_long_chunked_body_is_413_with_bounded_memory():
    async with running(max_body_bytes=300_000) as server:
        reader, writer = await connect(server.url)
        writer.write((POST + CHUNKED + "\r\n").encode())
        block = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        sent = 0
        answering = asyncio.create_task(read_answer(reader))
        while not answering.done() and sent < 100:
            writer.write(block)
            await writer.drain()
            await asyncio.sleep(0.001)
            sent += 1
        answer = await asyncio.wait_for(answering, 2)
        assert answer.status == 413
        assert sent < 100
        writer.close()


@pytest.mark.parametrize("step", [1 << 20, 200_000, 50_001])
async def test_a_body_of_many_small_chunks_comes_whole(step):
    """aiohttp's parser stops by itself between such chunks and wants to be asked to go on."""
    body = BODY + b" " * 80_000
    data = (
        (POST + CHUNKED + "\r\n").encode()
        + b"".join(b"1\r\n%c\r\n" % c for c in body)
        + b"0\r\n\r\n"
    )
    async with running(body_timeout_s=4) as server:
        reader, writer = await connect(server.url)
        for start in range(0, len(data), step):
            writer.write(data[start : start + step])
            await asyncio.sleep(0.005)
        assert (await asyncio.wait_for(read_answer(reader), 5)).status == 200
        writer.close()


async def test_the_answer_survives_the_rest_of_a_refused_body():
    """A server that closes with unread bytes resets the connection, and the answer is lost on its way."""
    async with running(max_body_bytes=1000) as server:
        reader, writer = await connect(server.url)
        writer.write(f"{POST}content-length: 3000000\r\n\r\n".encode())
        for _ in range(3):
            writer.write(b"x" * 1_000_000)
        await asyncio.wait_for(writer.drain(), 2)
        assert (await read_answer(reader)).status == 413
        writer.close()


async def test_expect_continue():
    async with running() as server:
        reader, writer = await connect(server.url)
        writer.write(f"{POST}expect: 100-continue\r\n{LENGTH}\r\n".encode())
        assert (
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 1)
            == b"HTTP/1.1 100 Continue\r\n\r\n"
        )
        writer.write(BODY)
        assert (await read_answer(reader)).status == 200
        writer.close()
        wrong = f"{POST.replace(SECRET, 'sk-wrong')}expect: 100-continue\r\n{LENGTH}\r\n"
        answer = await ask(server.url, wrong.encode())
        assert answer.status == 401
        assert answer.closed


async def test_too_many_connections_are_refused_and_the_admin_port_stays_up():
    async with running(max_connections=3) as server:
        held = [await connect(server.url) for _ in range(3)]
        await asyncio.sleep(0.02)
        answer = await ask(server.url, b"")
        assert answer.status == 503
        assert answer.error["code"] == "too_many_connections"
        assert answer.headers["retry-after"] == "1"
        assert (
            await ask(server.admin_url, request(b"", method="GET", path="/healthz"))
        ).status == 200
        for _, writer in held:
            writer.close()
        await asyncio.sleep(0.05)
        assert (await ask(server.url, request())).status == 200


async def test_a_flood_of_bad_keys_is_throttled_and_good_ones_pass():
    async with running() as server:
        reader, writer = await connect(server.url)
        statuses = []
        for i in range(70):
            writer.write(request(key=f"sk-guess-{i:08}"))
            answer = await read_answer(reader)
            statuses.append(answer.status)
            if answer.closed:
                break
        assert statuses[:60] == [401] * 60
        assert statuses[60:] == [429]
        assert answer.error["code"] == "rate_limit_exceeded"
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        writer.close()
        assert (await ask(server.url, request())).status == 200


async def test_a_body_of_a_mebibyte_doesnt_stall_the_loop():
    body = msgspec.json.encode(
        {"model": "m", "messages": [{"role": "user", "content": "word " * 800_000}]}
    )
    async with running() as server:
        reader, writer = await connect(server.url)
        worst = 0.0

        async def watch() -> None:
            nonlocal worst
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.001)
                worst = max(worst, time.monotonic() - before)

        watching = asyncio.create_task(watch())
        writer.write(request(body))
        assert (await read_answer(reader)).status == 200
        watching.cancel()
        assert worst < 0.1  # a quadratic join of 4 MiB takes seconds
        writer.close()


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 10_000, b"{}", b"null", b"", b'{"model":"m","messages":[]}',
        b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
    ],
)  # fmt: skip
async def test_bad_json_is_400(body):
    async with running() as server:
        answer = await ask(server.url, request(body))
        assert answer.status == 400
        assert answer.error["type"] == "invalid_request_error"
        assert not server.router.opened
