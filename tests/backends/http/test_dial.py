from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import ssl
import time

import pytest
import trustme

from router.backends.http import dial
from router.backends.http.connection import Connection, State
from router.backends.http.dial import Dialer, allowed, embedded, first, interleave, origin_of
from router.errors import ConfigError, Fault, FaultKind
from tests.backends.http.fakes import Diary
from tests.stepping import everywhere
from tests.upstream import Upstream

ip = ipaddress.ip_address


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://api.x.ai/v1", ("api.x.ai", 443, True, "/v1", "api.x.ai")),
        ("http://API.x.ai:8000/", ("api.x.ai", 8000, False, "", "api.x.ai:8000")),
        ("http://[::1]:80/a/b/", ("::1", 80, False, "/a/b", "[::1]")),
        ("https://x:80", ("x", 80, True, "", "x:80")),
    ],
)
def test_origins(url: str, parts: tuple[object, ...]) -> None:
    origin = origin_of(url)
    assert (origin.host, origin.port, origin.tls, origin.path, origin.authority) == parts


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x/",
        "http://",
        "http://x/a b",
        "http://x/a\r\nb: c",
        "http://\u00e9/",
        "http://u@x/",
        "http://x:99999/",
    ],
)
def test_what_is_no_origin(url: str) -> None:
    with pytest.raises(ValueError):
        origin_of(url)


@pytest.mark.parametrize(
    ("address", "public", "private"),
    [
        ("8.8.8.8", True, True),
        ("2606:4700::1111", True, True),
        ("127.0.0.1", False, True),
        ("10.1.2.3", False, True),
        ("192.168.1.1", False, True),
        ("172.16.0.1", False, True),
        ("100.64.0.1", False, True),
        ("0.0.0.0", False, True),
        ("::1", False, True),
        ("fd00::1", False, True),
        ("::ffff:10.0.0.1", False, True),
        ("64:ff9b::a00:1", False, True),
        ("169.254.169.254", False, False),
        ("fe80::1", False, False),
        ("::ffff:169.254.169.254", False, False),
        ("64:ff9b::a9fe:a9fe", False, False),
        ("2002:a9fe:a9fe::1", False, False),
        ("::a9fe:a9fe", False, False),
        ("fd00:ec2::254", False, False),
        ("100.100.100.200", False, False),
        ("224.0.0.1", False, False),
        ("ff02::1", False, False),
    ],
)
def test_addresses(address: str, public: bool, private: bool) -> None:
    assert allowed(ip(address), private=False) is public
    assert allowed(ip(address), private=True) is private


def test_embedded_addresses() -> None:
    assert embedded(ip("::ffff:1.2.3.4")) == ip("1.2.3.4")
    assert embedded(ip("::1")) == ip("::1")


def test_families_take_turns() -> None:
    six, four = [ip("::1"), ip("::2"), ip("::3")], [ip("1.1.1.1")]
    assert interleave([*six, *four]) == [six[0], four[0], six[1], six[2]]
    assert interleave([*four, *six]) == [four[0], *six]
    assert interleave([]) == []


def make() -> Connection:
    return Connection(asyncio.get_running_loop(), Diary())


async def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    async def getaddrinfo(host: str, port: int, **_: object) -> list[object]:
        kind = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [
            (kind[ip(one).version], socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


async def test_a_name_that_leads_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Upstream() as upstream:
        await resolving(monkeypatch, "127.0.0.1", "169.254.169.254")
        origin = origin_of(f"http://provider.test:{upstream.port}/v1")
        with pytest.raises(Fault, match="must not connect") as caught:
            await Dialer(origin).dial(make)
        assert caught.value.kind is FaultKind.CONNECT
        connection = await Dialer(origin, private_network=True).dial(make)
        connection.abort()
        await resolving(monkeypatch, "169.254.169.254", "fe80::1")
        with pytest.raises(Fault, match="must not connect"):
            await Dialer(origin, private_network=True).dial(make)


async def test_a_written_address_may_be_private_but_not_metadata() -> None:
    async with Upstream() as upstream:
        for host in ("127.0.0.1", "localhost"):
            connection = await Dialer(origin_of(f"http://{host}:{upstream.port}")).dial(make)
            connection.abort()
    with pytest.raises(Fault, match="must not connect"):
        await Dialer(origin_of("http://169.254.169.254")).dial(make)
    with pytest.raises(Fault, match="must not connect"):
        await Dialer(origin_of("http://[::ffff:169.254.169.254]")).dial(make)


async def test_nobody_there(unused_tcp_port: int) -> None:
    with pytest.raises(Fault) as caught:
        await Dialer(origin_of(f"http://127.0.0.1:{unused_tcp_port}")).dial(make)
    assert caught.value.kind is FaultKind.CONNECT


async def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    with pytest.raises(Fault, match="does not resolve") as caught:
        await Dialer(origin_of("http://provider.test")).dial(make)
    assert caught.value.blames_target


@pytest.mark.parametrize(
    "error", [socket.gaierror(socket.EAI_AGAIN, "try again"), OSError(errno.EMFILE, "too many")]
)
async def test_a_resolver_that_does_not_answer_is_our_own_fault(
    monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    async def getaddrinfo(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    with pytest.raises(Fault, match="resolve names now") as caught:
        await Dialer(origin_of("http://provider.test")).dial(make)
    assert caught.value.kind is FaultKind.LOCAL
    assert not caught.value.blames_target


async def test_without_a_descriptor_or_a_route_nobody_is_to_blame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def create_connection(*_: object, **__: object) -> None:
        raise OSError(next(numbers), "no")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", create_connection)
    await resolving(monkeypatch, "192.0.2.1", "2001:db8::1")
    dialer = Dialer(origin_of("http://provider.test"), private_network=True)
    for pair, kind in [
        ((errno.EMFILE, errno.EMFILE), FaultKind.LOCAL),
        ((errno.ECONNREFUSED, errno.ENETUNREACH), FaultKind.CONNECT),
        ((errno.ENETUNREACH, errno.ECONNREFUSED), FaultKind.CONNECT),
    ]:
        numbers = iter(pair)
        with pytest.raises(Fault) as caught:
            await dialer.dial(make)
        assert caught.value.kind is kind


async def test_the_next_address_is_tried_at_once_when_one_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Upstream() as upstream:
        await resolving(monkeypatch, "127.0.0.3", "127.0.0.1")
        start = time.monotonic()
        origin = origin_of(f"http://provider.test:{upstream.port}")
        connection = await Dialer(origin, private_network=True).dial(make)
        assert time.monotonic() - start < dial.HEAD_START_S
        connection.abort()
        await resolving(monkeypatch, "127.0.0.3", "127.0.0.2")
        with pytest.raises(Fault):
            await Dialer(origin, private_network=True).dial(make)


async def test_a_slow_address_loses_and_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "HEAD_START_S", 0.01)
    given_up: list[str] = []

    async def attempt(address: dial.Address) -> Connection:
        try:
            await asyncio.sleep(10 if str(address) == "1.1.1.1" else 0.03)
        except asyncio.CancelledError:
            given_up.append(str(address))
            raise
        return make()

    addresses = [ip("1.1.1.1"), ip("2.2.2.2")]
    await first(addresses, attempt)
    assert given_up == ["1.1.1.1"]
    task = asyncio.ensure_future(first(addresses, attempt))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(given_up[1:]) == ["1.1.1.1", "2.2.2.2"]


async def test_two_that_stand_at_once_leave_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "HEAD_START_S", 0.01)
    made: list[Connection] = []
    go = asyncio.Event()

    async def attempt(_: dial.Address) -> Connection:
        connection = make()
        made.append(connection)
        await go.wait()
        return connection

    task = asyncio.ensure_future(first([ip("1.1.1.1"), ip("2.2.2.2")], attempt))
    while len(made) < 2:
        await asyncio.sleep(0.005)
    go.set()
    winner = await task
    assert [one.state for one in made if one is not winner] == [State.CLOSED]


async def test_cancelled_at_every_await_no_connection_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where one stands already and the other is being given up."""
    monkeypatch.setattr(dial, "HEAD_START_S", 0.001)
    made: list[Connection] = []

    async def attempt(address: dial.Address) -> Connection:
        connection = make()
        made.append(connection)
        try:
            await asyncio.sleep(0.01 if str(address) == "1.1.1.1" else 0.005)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def use() -> None:
        connection = await first([ip("1.1.1.1"), ip("2.2.2.2")], attempt)
        connection.abort()

    async for where in everywhere(use):
        assert {one.state for one in made} <= {State.CLOSED}, where
    assert len(made) > 4


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def serving(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


async def test_tls_is_verified(authority: trustme.CA, ca_file: str) -> None:
    async with Upstream(tls=serving(authority, "127.0.0.1", "localhost")) as upstream:
        for host in ("127.0.0.1", "localhost"):
            origin = origin_of(f"https://{host}:{upstream.port}")
            connection = await Dialer(origin, ca_file=ca_file).dial(make)
            assert connection.ready()
            connection.abort()
        with pytest.raises(Fault, match="TLS") as caught:
            await Dialer(origin_of(upstream.url)).dial(make)
        assert caught.value.kind is FaultKind.CONNECT


async def test_a_certificate_for_another_name_is_refused(
    authority: trustme.CA, ca_file: str
) -> None:
    async with Upstream(tls=serving(authority, "other.test")) as upstream:
        with pytest.raises(Fault, match="TLS"):
            await Dialer(origin_of(upstream.url), ca_file=ca_file).dial(make)


async def test_a_server_without_tls_is_no_tls_server(ca_file: str) -> None:
    async with Upstream() as upstream:
        upstream.greeting = b"HTTP/1.1 400 Bad\r\n\r\n"
        with pytest.raises(Fault):
            await Dialer(origin_of(f"https://127.0.0.1:{upstream.port}"), ca_file=ca_file).dial(
                make
            )


def test_a_ca_file_must_be_one(tmp_path) -> None:
    with pytest.raises(ConfigError):
        dial.trust(str(tmp_path / "nowhere.pem"))
    (tmp_path / "empty.pem").write_text("nothing")
    with pytest.raises(ConfigError):
        dial.trust(str(tmp_path / "empty.pem"))
