"""Listeners: where they listen, and how they stop."""

import asyncio
import socket

import aiohttp
import pytest

from router.errors import ConfigError
from router.server.serving import Serving
from tests.server.fake_router import (
    ANSWER,
    SECRET,
    STREAM_BODY,
    FakeReply,
    FakeRouter,
    ask,
    config,
    connect,
    page,
    read_answer,
    request,
    running,
)

EVENT = b"data: {}\n\n"


def slow(seconds: float):
    async def open_(asked, _body):
        script = [EVENT, seconds, b"data: [DONE]\n\n"] if asked.stream else [seconds, ANSWER]
        return FakeReply(script, streaming=bool(asked.stream))

    return open_


async def test_port_0_shows_the_port():
    async with running() as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert not server.url.endswith(":0")
        assert server.url != server.admin_url


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_ipv6():
    auth = {"authorization": f"Bearer {SECRET}"}
    async with running(listen="[::1]:0") as server, aiohttp.ClientSession(headers=auth) as session:
        assert server.url.startswith("http://[::1]:")
        assert (await session.get(server.url + "/v1/models")).status == 200


async def test_a_busy_port_is_said_clearly_and_leaves_nothing_open():
    async with running() as server:
        taken = server.url.removeprefix("http://")
        with pytest.raises(ConfigError, match=r"server.listen: can't listen there"):
            await Serving(FakeRouter(config(listen=taken)), page).start()
        serving = Serving(FakeRouter(config(admin=taken)), page)
        with pytest.raises(ConfigError, match=r"server.admin: can't listen there"):
            await serving.start()
        with pytest.raises(ConnectionError):
            await connect(serving.url)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "example.org:0"])
async def test_no_listening_beyond_this_machine_without_keys(listen):
    with pytest.raises(ConfigError, match="without keys"):
        await Serving(FakeRouter(config(keys=False, listen=listen)), page).start()


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1", "127.0.0.1:99999", ":80"])
async def test_what_is_no_address_is_refused(listen):
    with pytest.raises(ConfigError, match="not an address"):
        await Serving(FakeRouter(config(listen=listen)), page).start()


async def test_without_keys_on_loopback_nobody_needs_one():
    async with running(keys=False) as server:
        assert (await ask(server.url, request(key=None))).status == 200
        assert server.router.opened[0][0] == "anonymous"


async def test_several_in_one_process_know_nothing_of_each_other():
    async with running() as one, running(keys=False) as two, running(max_body_bytes=10) as three:
        answers = await asyncio.gather(*(ask(s.url, request(key=None)) for s in (one, two, three)))
        assert [a.status for a in answers] == [401, 200, 401]
        assert (await ask(three.url, request())).status == 413
        await one.serving.stop(0)
        assert (await ask(two.url, request(key=None))).status == 200


async def test_stopping_lets_running_answers_end():
    async with running(slow(0.3)) as server:
        idle_reader, idle_writer = await connect(server.url)
        idle_writer.write(request(b"", method="GET", path="/v1/models"))
        await read_answer(idle_reader)
        one, two = await connect(server.url), await connect(server.url)
        one[1].write(request())
        two[1].write(request(STREAM_BODY))
        await two[0].readuntil(EVENT)
        stopping = asyncio.create_task(server.serving.stop(5))
        assert await asyncio.wait_for(idle_reader.read(), 0.2) == b""
        answer = await ask(server.admin_url, request(b"", method="GET", path="/readyz"))
        assert (answer.status, answer.closed) == (503, False)
        assert (
            await ask(server.admin_url, request(b"", method="GET", path="/healthz"))
        ).status == 200
        with pytest.raises(ConnectionError):
            await connect(server.url)
        whole = await read_answer(one[0])
        assert (whole.status, whole.body, whole.closed) == (200, ANSWER, True)
        rest = await asyncio.wait_for(two[0].read(), 1)
        assert b"[DONE]" in rest
        assert rest.endswith(b"0\r\n\r\n")
        await asyncio.wait_for(stopping, 0.5)
        with pytest.raises(ConnectionError):
            await connect(server.admin_url)
        for _, writer in (one, two):
            writer.close()
        idle_writer.close()


async def test_what_runs_longer_ends_with_an_explicit_error():
    async with running(slow(30)) as server:
        one, two = await connect(server.url), await connect(server.url)
        one[1].write(request())
        two[1].write(request(STREAM_BODY))
        await two[0].readuntil(EVENT)
        await asyncio.wait_for(server.serving.stop(0.1), 1.5)
        whole = await read_answer(one[0])
        assert (whole.status, whole.error["code"], whole.closed) == (503, "shutting_down", True)
        rest = await asyncio.wait_for(two[0].read(), 1)
        assert b'data: {"error":{"message":"The server is shutting down."' in rest
        assert not rest.endswith(b"0\r\n\r\n")
        assert all(reply.closed.is_set() for reply in server.router.replies)
        for _, writer in (one, two):
            writer.close()


async def test_a_stopped_server_can_be_stopped_again():
    async with running() as server:
        await server.serving.stop(0)
        await server.serving.stop(0)


async def test_requests_that_wait_for_engines_are_answered_when_nothing_is_ready():
    """The listeners are open while engines load; nothing is refused by the system."""
    async with running() as server:
        server.router.is_ready = False
        assert (
            await ask(server.admin_url, request(b"", method="GET", path="/readyz"))
        ).status == 503
        assert (await ask(server.url, request(b"", method="GET", path="/v1/models"))).status == 200
