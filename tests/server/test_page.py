"""The page, the status and the playground at the admin port: who gets what."""

import ipaddress
import re
import socket

import msgspec
import pytest

from router.config.schema import Server
from router.errors import ApiError
from router.server import page
from router.server.exchange import Exchange
from router.server.guard import Guard, refuse_foreign
from router.server.serving import Serving
from tests.server.fake_router import (
    BODY,
    SECRET,
    STREAM_BODY,
    FakeRouter,
    ask,
    config,
    request,
    running,
    until,
)
from tests.server.fake_router import page as scrape

ADMIN_KEY = "sk-admin-0123456789"
LOCAL = "127.0.0.1:9090"


def get(path: str, host: str = LOCAL, headers: str = "", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n{headers}\r\n".encode()


def chat(host: str = LOCAL, body: bytes = BODY, *, key: str | None = SECRET, headers: str = ""):
    return request(body, key=key, headers=headers).replace(b"host: x", f"host: {host}".encode())


def bearer(key: str) -> str:
    return f"authorization: Bearer {key}\r\n"


# The files


async def test_every_file_comes_with_the_policy_and_whoever_asks():
    async with running(admin_key=ADMIN_KEY) as server:
        for path, (_, kind) in page.FILES.items():
            answer = await ask(server.admin_url, get(path, host="router.example"))
            assert (answer.status, answer.headers["content-type"]) == (200, kind)
            assert len(answer.body) > 100
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; ")
            assert "unsafe" not in policy
            assert "http" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-frame-options"] == "DENY"
            assert not [name for name in answer.headers if name.startswith("access-control")]
            head = await ask(server.admin_url, get(path, method="HEAD"), head_only=True)
            assert head.status == 200


def test_the_files_name_no_other_host_and_no_way_to_make_markup():
    for name in {name for name, _ in page.FILES.values()}:
        text = (page.FOLDER / name).read_text(encoding="utf-8")
        urls = set(
            re.findall(r"(?:https?:)?//[A-Za-z][^\s\"'`)]*", re.sub(r"(?m)// .*$", "", text))
        )
        assert urls <= {"http://www.w3.org/2000/svg"}, name
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser",
                     "javascript:", "srcdoc", "new Function", "style=", "onclick", "localStorage"):  # fmt: skip
            assert word not in text, (name, word)


def test_every_file_of_the_folder_is_served():
    assert {path.name for path in page.FOLDER.iterdir()} == {
        name for name, _ in page.FILES.values()
    }


# The status


async def test_the_status_of_a_router():
    async with running() as server:
        answer = await ask(server.admin_url, get("/status"))
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
        status = msgspec.json.decode(answer.body)
        assert status["health"] == "ready"
        assert [one["name"] for one in status["models"]] == ["m"]
        server.router.is_ready = False
        answer = await ask(server.admin_url, get("/status"))
        assert msgspec.json.decode(answer.body)["health"] == "not ready"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.9.9.9:80", "[::1]:9090", "[::ffff:127.0.0.1]"]
)  # fmt: skip
async def test_without_an_admin_key_loopback_may_look(host):
    async with running() as server:
        assert (await ask(server.admin_url, get("/status", host))).status == 200
        assert (await ask(server.admin_url, chat(host))).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:9090", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "0.0.0.0",
     "[::]", "[::ffff:10.0.0.1]", "2130706433", "0x7f.1", "", "localhost.", "[fe80::1]"],
)  # fmt: skip
async def test_a_rebound_name_gets_nothing(host):
    """A hostile page whose name leads here is of our origin to its browser: only the name it asks for tells."""
    origin = f"origin: http://{host}\r\ncontent-type: application/json\r\n"
    async with running() as server:
        answer = await ask(server.admin_url, get("/status", host))
        assert (answer.status, answer.error["code"]) == (403, "not_local")
        answer = await ask(server.admin_url, chat(host, headers=origin))
        assert (answer.status, answer.error["code"]) == (403, "not_local")
        assert server.router.opened == []


@pytest.mark.parametrize(
    "name", ["x-forwarded-for: 10.0.0.1", "forwarded: for=10.0.0.1", "x-real-ip: 1.2.3.4", "via: 1.1 x"]
)  # fmt: skip
async def test_who_comes_through_a_proxy_is_not_local(name):
    async with running() as server:
        assert (await ask(server.admin_url, get("/status", headers=f"{name}\r\n"))).status == 403


def a_call(address: str, head: bytes) -> Exchange:
    """A request from ``address``, which no test machine has."""

    class Connection:
        pass

    class Head:
        pass

    lines = head.decode().split("\r\n")
    connection, parsed = Connection(), Head()
    connection.address = address
    parsed.headers = {
        name.title(): value
        for name, _, value in (line.partition(": ") for line in lines[1:] if line)
    }
    return Exchange(parsed, None, connection)


@pytest.mark.parametrize(
    ("address", "ok"),
    [
        ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False), ("fe80::1%eth0", False), ("", False), ("192.168.1.7", False),
    ],
)  # fmt: skip
def test_the_connections_address_decides(address, ok):
    guard = Guard(None, asks_for_keys=True)
    for may in (guard.look, guard.chat):
        if ok:
            may(a_call(address, get("/status")))
        else:
            with pytest.raises(ApiError) as caught:
                may(a_call(address, get("/status")))
            assert caught.value.status == 403


def other_address() -> str | None:
    """An address of this machine beyond loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))
        except OSError:
            return None
        found = probe.getsockname()[0]
    return None if ipaddress.ip_address(found).is_loopback else found


async def test_from_beyond_loopback_on_a_real_socket():
    address = other_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    async with running(admin="0.0.0.0:0") as server:
        import asyncio

        port = int(server.admin_url.rpartition(":")[2])
        for data in (get("/status"), chat()):
            reader, writer = await asyncio.open_connection(address, port)
            writer.write(data)
            assert b" 403 " in await reader.readuntil(b"\r\n")
            writer.close()


async def test_with_an_admin_key_its_holder_may_look_from_anywhere_and_nobody_else():
    async with running(admin_key=ADMIN_KEY) as server:
        for host in (LOCAL, "router.example"):
            good = await ask(server.admin_url, get("/status", host, bearer(ADMIN_KEY)))
            assert good.status == 200
            for wrong in (
                "",
                bearer(SECRET),
                bearer(ADMIN_KEY[:-1]),
                bearer(""),
                f"authorization: {ADMIN_KEY}\r\n",
            ):
                answer = await ask(server.admin_url, get("/status", host, wrong))
                assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
                assert ADMIN_KEY not in answer.body.decode()


async def test_who_guesses_admin_keys_is_throttled_and_the_right_one_still_passes():
    async with running(admin_key=ADMIN_KEY) as server:
        statuses = [
            (await ask(server.admin_url, get("/status", headers=bearer(f"wrong-{n}")))).status
            for n in range(65)
        ]
        assert statuses[:60] == [401] * 60
        assert set(statuses[60:]) == {429}
        assert (
            await ask(server.admin_url, get("/status", headers=bearer(ADMIN_KEY)))
        ).status == 200


@pytest.mark.parametrize(
    ("headers", "ok"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://a:1", "Host": "a:1"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "nonsense"}, False),
        ({"Origin": "http://a:1", "Host": "a:1"}, True),
        ({"Origin": "https://a:1", "Host": "a:1"}, True),
        ({"Origin": "http://a:2", "Host": "a:1"}, False),
        ({"Origin": "http://evil.example", "Host": "a:1"}, False),
        ({"Origin": "null", "Host": "a:1"}, False),
        ({"Origin": "", "Host": "a:1"}, False),
        ({"Origin": "http://a:1"}, False),
    ],
)
def test_pages_of_other_origins(headers, ok):
    if ok:
        refuse_foreign(headers)
        return
    with pytest.raises(ApiError) as caught:
        refuse_foreign(headers)
    assert (caught.value.status, caught.value.error.code) == (403, "origin_refused")


# The playground


async def test_a_cross_site_post_reaches_nobody():
    """With a simple content type a browser sends it without asking first."""
    async with running(keys=False) as server:
        for headers, status in (
            ("origin: http://evil.example\r\ncontent-type: text/plain\r\n", 415),
            ("origin: http://evil.example\r\ncontent-type: application/json\r\n", 403),
            ("sec-fetch-site: cross-site\r\n", 403),
            (f"sec-fetch-site: same-origin\r\norigin: http://{LOCAL}\r\n", 415),
        ):
            assert (await ask(server.admin_url, chat(key=None, headers=headers))).status == status
        assert server.router.opened == []
        own = f"sec-fetch-site: same-origin\r\norigin: http://{LOCAL}\r\ncontent-type: application/json\r\n"
        assert (await ask(server.admin_url, chat(key=None, headers=own))).status == 200
        preflight = get("/v1/chat/completions", method="OPTIONS")
        assert (await ask(server.admin_url, preflight)).status == 405


@pytest.mark.parametrize("admin_key", [None, ADMIN_KEY])
async def test_the_playground_is_no_way_around_keys(admin_key):
    async with running(admin_key=admin_key) as server:
        for key in (None, "sk-wrong-key-00000", ADMIN_KEY):
            answer = await ask(server.admin_url, chat(key=key))
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert server.router.opened == []
        answer = await ask(server.admin_url, chat())
        assert (answer.status, answer.headers["x-nenya-target"]) == (200, "fake/m")
        assert [key_id for key_id, _ in server.router.opened] == ["me"]


async def test_an_admin_key_alone_opens_no_keyless_playground_to_others():
    async with running(keys=False, admin_key=ADMIN_KEY) as server:
        assert (await ask(server.admin_url, chat("evil.example", key=None))).status == 403
        assert (await ask(server.admin_url, chat(key=None))).status == 200


async def test_it_streams_as_the_api_does_and_its_end_settles():
    async with running() as server:
        server.router.script = [b"data: 1\n\n", b"data: [DONE]\n\n"]
        here = await ask(server.admin_url, chat(body=STREAM_BODY))
        server.router.script = [b"data: 1\n\n", b"data: [DONE]\n\n"]
        there = await ask(server.url, chat(body=STREAM_BODY))
        assert here.body == there.body == b"data: 1\n\ndata: [DONE]\n\n"
        assert {**here.headers, "x-request-id": "", "openai-processing-ms": "", "date": ""} == {
            **there.headers, "x-request-id": "", "openai-processing-ms": "", "date": "",
        }  # fmt: skip
        await until(lambda: all(reply.closed.is_set() for reply in server.router.replies))


async def test_while_it_drains_answers_end_and_no_other_begins():
    import asyncio

    go = asyncio.Event()
    router = FakeRouter(config(drain_s=5))
    router.script = [b"data: 1\n\n", go, b"data: [DONE]\n\n"]
    serving = Serving(router, scrape)
    await serving.start()
    running_one = asyncio.ensure_future(ask(serving.admin_url, chat(body=STREAM_BODY)))
    later = None
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", int(serving.admin_url.rpartition(":")[2])
    )
    try:
        await until(lambda: router.replies)
        writer.write(get("/healthz"))
        await reader.readuntil(b"}")
        # The API's own answer keeps the drain from getting to the admin port.
        router.script = [b"data: 1\n\n", go, b"data: [DONE]\n\n"]
        held = asyncio.ensure_future(ask(serving.url, chat(body=STREAM_BODY)))
        await until(lambda: len(router.replies) == 2)
        stopping = asyncio.ensure_future(serving.stop(5))
        await asyncio.sleep(0.05)
        later = await ask(serving.admin_url, chat())
        assert (later.status, later.error["code"]) == (503, "shutting_down")
        status = await ask(serving.admin_url, get("/status"))
        assert msgspec.json.decode(status.body)["health"] == "draining"
        go.set()
        assert (await held).body.endswith(b"[DONE]\n\n")
        assert (await running_one).body.endswith(b"[DONE]\n\n")
        await stopping
    finally:
        writer.close()
        await serving.stop(0)


def test_nobody_listens_where_there_is_no_admin_port():
    router = FakeRouter(config(admin=None))
    Serving(router, scrape)
    assert router.listeners == []
    assert Server(admin_key=ADMIN_KEY).admin_key == ADMIN_KEY
