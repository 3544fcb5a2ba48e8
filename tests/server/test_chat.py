"""POST /v1/chat/completions: answers, streams, and everything that ends one early."""

import asyncio
import logging
import re
import socket
import time

import aiohttp
import msgspec
import pytest

from router.errors import ApiError, ErrorObject, overloaded
from router.server import connection
from router.wire.sse import KEEP_ALIVE
from tests.server.fake_router import (
    ANSWER,
    BODY,
    SECRET,
    STREAM_BODY,
    FakeReply,
    ask,
    connect,
    port_of,
    read_answer,
    request,
    running,
    until,
)

EVENTS = [b'data: {"n":%d}\n\n' % n for n in range(8)] + [b"data: [DONE]\n\n"]
BROKEN = ApiError(502, ErrorObject("It broke.", "upstream_error", None, "stream_cut"))
ONE_TICK_S = 0.1
"""A client that is gone is noticed within this."""


def scripted(*script, headers=None, streaming=None):
    """What ``open`` does: replies with a script."""

    async def open_(asked, _body):
        return FakeReply(
            list(script),
            streaming=bool(asked.stream) if streaming is None else streaming,
            headers=headers,
        )

    return open_


async def test_an_answer_and_its_headers():
    async with running() as server:
        answer = await ask(server.url, request(headers="x-request-id: mine-1\r\n"))
        assert (answer.status, answer.body) == (200, ANSWER)
        headers = answer.headers
        assert headers["content-type"] == "application/json"
        assert headers["x-request-id"] == "mine-1"
        assert headers["openai-version"] == "2020-10-01"
        assert 0 <= int(headers["openai-processing-ms"]) < 1000
        names = ("x-nenya-target", "x-nenya-attempts", "x-nenya-overhead-ms")
        assert [headers[name] for name in names] == ["fake/m", "1", "0.125"]
        assert "server" not in headers
        assert server.router.opened == [("me", "mine-1")]
        assert server.reply.closed.is_set()


@pytest.mark.parametrize("asked", ["a" * 129, "a b", "ä", "a\tb", ""])
async def test_an_insane_request_id_is_replaced(asked):
    async with running() as server:
        ids = set()
        for _ in range(3):
            answer = await ask(server.url, request(headers=f"x-request-id: {asked}\r\n"))
            assert re.fullmatch(r"req_[0-9a-f]{20}", answer.headers["x-request-id"])
            ids.add(answer.headers["x-request-id"])
        assert len(ids) == 3


async def test_only_sane_headers_of_an_upstream_come_through():
    headers = {
        "x-ratelimit-remaining-requests": "7", "x-bad": "a\r\nset-cookie: b", "x-nul": "a\0", "x-wide": "a\u2028b",
        "content-length": "1", "transfer-encoding": "chunked", "connection": "close", "set-cookie": "a",
        "content-type": "text/html", "date": "never", "x-request-id": "theirs",
    }  # fmt: skip
    async with running(scripted(ANSWER, headers=headers)) as server:
        answer = await ask(server.url, request())
        assert answer.body == ANSWER
        assert answer.headers["x-ratelimit-remaining-requests"] == "7"
        assert answer.headers["content-type"] == "application/json"
        assert not {
            "x-bad",
            "x-nul",
            "x-wide",
            "set-cookie",
            "connection",
            "transfer-encoding",
        } & set(answer.headers)


async def test_a_targets_name_may_be_in_any_script():
    async def open_(_asked, _body):
        reply = FakeReply([ANSWER], streaming=False)
        reply.target = "模型/a\r\nx: y"
        return reply

    async with running(open_) as server:
        assert (await ask(server.url, request())).headers["x-nenya-target"] == "??/a??x: y"


async def test_an_answer_in_pieces_is_joined():
    async with running(scripted(b'{"a":', b"1", b"}")) as server:
        assert (await ask(server.url, request())).body == b'{"a":1}'


async def test_a_stream_whole():
    async with running(scripted(*EVENTS)) as server, aiohttp.ClientSession(server.url) as session:
        auth = {"authorization": f"Bearer {SECRET}"}
        for _ in range(2):  # the connection stays
            response = await session.post("/v1/chat/completions", data=STREAM_BODY, headers=auth)
            assert response.status == 200
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert response.headers["cache-control"] == "no-cache"
            assert response.headers["x-nenya-target"] == "fake/m"
            assert "content-length" not in response.headers
            assert await response.read() == b"".join(EVENTS)
        assert len(session.connector._conns) == 1
        assert all(reply.closed.is_set() for reply in server.router.replies)


async def test_a_stream_that_is_waited_for_gets_comments_until_its_first_piece(monkeypatch):
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.03)
    go = asyncio.Event()

    async def open_(asked, _body):
        await go.wait()
        return FakeReply([*EVENTS[:1], 0.1, *EVENTS[1:]], streaming=bool(asked.stream))

    async with running(open_) as server, aiohttp.ClientSession(server.url) as session:
        auth = {"authorization": f"Bearer {SECRET}"}
        response = await session.post("/v1/chat/completions", data=STREAM_BODY, headers=auth)
        assert response.status == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert await response.content.readuntil(b"\n\n") == KEEP_ALIVE
        assert await response.content.readuntil(b"\n\n") == KEEP_ALIVE
        go.set()
        rest = await response.read()
        assert rest.replace(KEEP_ALIVE, b"") == b"".join(EVENTS)
        assert rest.rindex(KEEP_ALIVE) < rest.index(EVENTS[0]) if KEEP_ALIVE in rest else True
        async with session.get("/v1/models", headers=auth) as answer:
            assert answer.status == 200  # the connection stays


async def test_an_error_after_a_comment_is_an_event_and_no_clean_end(monkeypatch):
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.02)

    async def open_(_asked, _body):
        await asyncio.sleep(0.05)
        raise BROKEN

    async with running(open_) as server, aiohttp.ClientSession(server.url) as session:
        auth = {"authorization": f"Bearer {SECRET}"}
        async with session.post("/v1/chat/completions", data=STREAM_BODY, headers=auth) as response:
            assert response.status == 200
            text = b""
            with pytest.raises(aiohttp.ClientPayloadError):
                while piece := await response.content.readany():
                    text += piece
    assert text.replace(KEEP_ALIVE, b"") == b"data: " + BROKEN.body + b"\n\n"


async def test_what_is_no_stream_gets_no_comment(monkeypatch):
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.01)

    async def open_(_asked, _body):
        await asyncio.sleep(0.05)
        return FakeReply([ANSWER], streaming=False)

    async with running(open_) as server:
        assert (await ask(server.url, request())).body == ANSWER


async def test_a_client_that_leaves_between_comments_cancels_the_waiting(monkeypatch):
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.01)

    async def open_(_asked, _body):
        await asyncio.Event().wait()

    async with running(open_) as server, aiohttp.ClientSession(server.url) as session:
        auth = {"authorization": f"Bearer {SECRET}"}
        async with session.post("/v1/chat/completions", data=STREAM_BODY, headers=auth) as response:
            await response.content.readuntil(b"\n\n")
            response.close()
        async with asyncio.timeout(1):
            await server.router.cancelled.wait()


async def test_pieces_arrive_one_by_one_undelayed():
    gates = [asyncio.Event() for _ in EVENTS]
    script = [part for gate, event in zip(gates, EVENTS, strict=True) for part in (gate, event)]
    async with running(scripted(*script)) as server:
        reader, writer = await connect(server.url)
        writer.write(request(STREAM_BODY))
        for number, (gate, event) in enumerate(zip(gates, EVENTS, strict=True)):
            gate.set()
            if number == 0:
                await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 1)
            got = await asyncio.wait_for(
                reader.readexactly(len(b"%x\r\n%b\r\n" % (len(event), event))), 1
            )
            assert event in got  # and the next one isn't even written yet
        assert await asyncio.wait_for(reader.readexactly(5), 1) == b"0\r\n\r\n"
        writer.close()


async def test_a_stream_without_done_ends_all_the_same():
    async with running(scripted(*EVENTS[:-1])) as server:
        assert (await ask(server.url, request(STREAM_BODY))).body == b"".join(EVENTS[:-1])


@pytest.mark.parametrize("after", [b"data: more\n\n", BROKEN])
async def test_what_comes_after_done_is_not_sent(after):
    async with running(scripted(*EVENTS, after)) as server:
        assert (await ask(server.url, request(STREAM_BODY))).body == b"".join(EVENTS)
        await asyncio.wait_for(server.reply.closed.wait(), ONE_TICK_S)


async def test_a_stream_to_http_1_0_ends_with_the_connection():
    async with running(scripted(*EVENTS)) as server:
        reader, writer = await connect(server.url)
        writer.write(request(STREAM_BODY).replace(b"HTTP/1.1", b"HTTP/1.0"))
        head, _, body = (await asyncio.wait_for(reader.read(), 1)).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert body == b"".join(EVENTS)
        writer.close()


async def test_a_large_answer_and_a_large_blob_come_whole():
    big = b'{"x":"' + b"y" * 3_000_000 + b'"}'
    async with running(scripted(big)) as server:
        assert (await ask(server.url, request())).body == big
        answer = await ask(server.url, request(STREAM_BODY))
        assert answer.body == big


@pytest.mark.parametrize("body", [request(), request(STREAM_BODY)])
async def test_an_error_before_the_first_byte_is_an_error(body):
    async def refuse(_request, _body):
        raise overloaded("Nobody is up.", "model_unavailable", 2.5)

    async with running(refuse) as server:
        reader, writer = await connect(server.url)
        for _ in range(2):
            writer.write(body)
            answer = await read_answer(reader)
            assert answer.status == 503
            assert answer.error == {
                "message": "Nobody is up.", "type": "server_error", "param": None, "code": "model_unavailable",
            }  # fmt: skip
            assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == (
                "3",
                "2500",
            )
        writer.close()


async def test_an_upstreams_own_error_body_comes_through():
    theirs = b'{"error":{"message":"m","type":"t","param":null,"code":null,"extra":1}}'

    async def refuse(_request, _body):
        raise ApiError(418, ErrorObject("m", "t"), body=theirs)

    async with running(refuse) as server:
        answer = await ask(server.url, request())
        assert (answer.status, answer.body) == (418, theirs)


async def test_a_status_without_a_name_is_sent():
    async def refuse(_request, _body):
        raise ApiError(529, ErrorObject("m", "t"))

    async with running(refuse) as server:
        assert (await ask(server.url, request())).status == 529


async def test_a_failure_after_the_first_byte_is_an_event_and_no_clean_end():
    async with running(scripted(EVENTS[0], BROKEN)) as server:
        reader, writer = await connect(server.url)
        writer.write(request(STREAM_BODY))
        data = await asyncio.wait_for(reader.read(), 1)
        assert EVENTS[0] in data
        assert data.endswith(b"data: " + BROKEN.body + b"\n\n\r\n")
        assert b"0\r\n\r\n" not in data
        assert b"[DONE]" not in data
        assert server.reply.closed.is_set()
        writer.close()


async def test_an_error_event_is_one_line():
    pretty = ApiError(502, ErrorObject("m", "t"), body=b'{\n "error": {"message": "m"}\n}')
    async with running(scripted(EVENTS[0], pretty)) as server:
        reader, writer = await connect(server.url)
        writer.write(request(STREAM_BODY))
        data = await asyncio.wait_for(reader.read(), 1)
        assert b'data: {"error":{"message":"m","type":"t","param":null,"code":null}}\n\n' in data
        writer.close()


async def test_a_failure_of_a_whole_answer_before_its_end_is_an_error():
    async with running(scripted(b'{"a":', BROKEN)) as server:
        answer = await ask(server.url, request())
        assert (answer.status, answer.error["code"]) == (502, "stream_cut")
        assert server.reply.closed.is_set()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_is_a_500_that_says_nothing(stream, caplog):
    """Neither the client nor the log hears what the exception says: it may quote a prompt."""
    secret = "my secret prompt"

    async def fail(_request, _body):
        raise ValueError(secret)

    async with running(fail) as server:
        answer = await ask(server.url, request(STREAM_BODY if stream else BODY))
        assert answer.status == 500
        assert answer.error["code"] == "internal_error"
    assert "ValueError" in caplog.text
    assert answer.headers["x-request-id"] in caplog.text
    assert secret not in caplog.text + answer.body.decode()


async def test_a_connection_error_of_the_routers_is_no_client_that_left(caplog):
    async def fail(_request, _body):
        raise ConnectionResetError

    async with running(fail) as server:
        assert (await ask(server.url, request())).status == 500
    assert "ConnectionResetError" in caplog.text


async def test_a_bug_in_a_stream_is_an_error_event(caplog):
    async with running(scripted(EVENTS[0], ValueError("x"))) as server:
        reader, writer = await connect(server.url)
        writer.write(request(STREAM_BODY))
        data = await asyncio.wait_for(reader.read(), 1)
        assert b'data: {"error":{' in data
        assert b"0\r\n\r\n" not in data
        assert server.reply.closed.is_set()
        writer.close()
    assert "ValueError" in caplog.text


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_is_noticed(how, stream):
    """In a stream and before a whole answer."""
    async with running(scripted(*([EVENTS[0]] if stream else []), 30.0, ANSWER)) as server:
        reader, writer = await connect(server.url)
        writer.write(request(STREAM_BODY) if stream else request())
        if stream:
            await reader.readuntil(EVENTS[0])
        await until(lambda: server.router.replies)
        _leave(writer, how)
        await asyncio.wait_for(server.reply.closed.wait(), ONE_TICK_S)


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_while_it_waits_cancels_the_waiting(how):
    async def wait(_request, _body):
        await asyncio.sleep(30)

    async with running(wait) as server:
        _, writer = await connect(server.url)
        writer.write(request())
        await until(lambda: server.router.opened)
        _leave(writer, how)
        await asyncio.wait_for(server.router.cancelled.wait(), ONE_TICK_S)


async def test_a_client_that_leaves_a_body_unfinished_leaves_nothing():
    async with running() as server:
        _, writer = await connect(server.url)
        writer.write(request()[:-5])
        await asyncio.sleep(0.02)
        writer.close()
        await asyncio.sleep(0.05)
        assert not server.serving._gates[0].connections
        assert not server.router.opened


def _leave(writer, how):
    if how == "reset":
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.close()


async def test_a_slow_reader_is_held_back_and_then_cut():
    """What waits for it is bounded, and it can't hold an answer for ever."""
    blob = b"data: " + b"x" * 65536 + b"\n\n"
    async with running(scripted(*[blob] * 2000)) as server:
        gate = server.serving._gates[0]
        gate.limits = msgspec.structs.replace(gate.limits, read_stall_s=0.3)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", port_of(server.url)))
        await loop.sock_sendall(sock, request(STREAM_BODY))
        started = time.monotonic()
        await until(lambda: server.router.replies)
        await asyncio.wait_for(server.reply.closed.wait(), 2)
        assert time.monotonic() - started > 0.25
        assert server.reply.reads < 200
        await asyncio.sleep(0.02)
        assert not gate.connections
        sock.close()


async def test_a_slow_reader_that_reads_gets_everything():
    blob = b"data: " + b"x" * 65536 + b"\n\n"
    async with running(scripted(*[blob] * 40)) as server:
        gate = server.serving._gates[0]
        gate.limits = msgspec.structs.replace(gate.limits, read_stall_s=0.3)
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server.url), limit=4096)
        writer.write(request(STREAM_BODY))
        size = 0
        while data := await reader.read(65536):
            size += len(data)
            await asyncio.sleep(0.005)
            if data.endswith(b"0\r\n\r\n"):
                break
        assert size > 40 * len(blob)
        writer.close()


async def test_a_canary_key_is_nowhere(caplog):
    """Not in an answer, not in a log line, whatever goes wrong with the request that carries it."""
    caplog.set_level(logging.DEBUG)

    async def fail(_request, _body):
        raise ValueError(SECRET)

    bad = [
        request(), request(b"{"), request(path="/nowhere"), request(method="GET"), request(b"x" * 2000),
        request(headers="content-encoding: br\r\n"),
        request(headers=f"x: {SECRET}\0\r\n"),
        request(headers=f"{SECRET}\r\n"), request(key=SECRET + "x"),
        request(headers=f"x-request-id: {SECRET} \x7f\r\n"),
        b"GET " + SECRET.encode() + b"\r\n\r\n",
    ]  # fmt: skip
    async with running(fail, max_body_bytes=1000) as server:
        for data in bad:
            reader, writer = await connect(server.url)
            writer.write(data)
            writer.write_eof()
            answer = await asyncio.wait_for(reader.read(), 7)
            assert SECRET.encode() not in answer, data
            writer.close()
    assert SECRET not in caplog.text


async def test_cancelled_at_every_await_the_reply_is_closed():
    """However many turns of the loop pass before the client leaves, nothing stays open."""
    for turns in range(25):
        async with running(scripted(EVENTS[0], 0.0, EVENTS[1], 0.001, *EVENTS)) as server:
            _, writer = await connect(server.url)
            writer.write(request(STREAM_BODY))
            for _ in range(turns):
                await asyncio.sleep(0)
            _leave(writer, "reset")
            gate = server.serving._gates[0]
            await until(lambda gate=gate: not gate.connections)
            assert all(reply.closed.is_set() for reply in server.router.replies)


async def test_no_task_is_left_behind():
    before = len(asyncio.all_tasks())
    async with running(scripted(*EVENTS)) as server:
        for _ in range(5):
            await ask(server.url, request(STREAM_BODY))
    await asyncio.sleep(0.02)
    assert len(asyncio.all_tasks()) == before
