"""Who may go where, and what a path is."""

import asyncio

import aiohttp
import msgspec
import pytest

from router.errors import ApiError
from router.server.exchange import Exchange
from router.server.routes import Route, Routes
from router.server.serving import api_routes
from tests.server.fake_router import (
    SECRET,
    FakeRouter,
    ask,
    config,
    request,
    running,
)


async def _serve(exchange: Exchange) -> None:
    raise AssertionError


def table() -> Routes:
    return Routes(
        (
            Route("POST", "/v1/chat/completions", _serve, needs_key=True),
            Route("GET", "/v1/models", _serve, needs_key=True),
            Route("GET", "/v1/models/", _serve, needs_key=True, prefix=True),
        )
    )


@pytest.mark.parametrize(
    ("path", "rest"),
    [
        ("/v1/models/m", "m"),
        ("/v1/models/org%2Fbig%3A8b", "org/big:8b"),
        ("/v1/models/org/big:8b", "org/big:8b"),
        ("/v1/models/%ff", "\ufffd"),
        ("/v1/models//", "/"),
    ],
)
def test_the_rest_of_a_path_is_decoded(path, rest):
    assert table().match("GET", path)[1] == rest


@pytest.mark.parametrize(
    "path",
    [
        "/", "/v1", "/v1/", "/v1/models/", "/V1/models", "/v1/Models", "//v1/models", "/v1//models", "/v1/./models",
        "/v1/x/../models", "/v1%2fmodels", "/v1/chat%2fcompletions", "/v1/chat/completions/", "/v1/models#",
        "/v1/models;x", "/v1/chat/completions%00", "/admin", "/metrics", "/../metrics", "/%2e%2e/metrics",
    ],
)  # fmt: skip
def test_other_spellings_are_other_paths(path):
    for method in ("GET", "POST"):
        with pytest.raises(ApiError) as caught:
            table().match(method, path)
        assert caught.value.status == 404
        assert caught.value.error.message == f"Invalid URL ({method} {path})"


def test_a_404_repeats_little_and_nothing_unencodable():
    with pytest.raises(ApiError) as caught:
        table().match("GET", "/" + "a" * 5000 + "\udcff")
    assert len(caught.value.body) < 400
    with pytest.raises(ApiError) as caught:
        table().match("GET", "/\udcff")
    msgspec.json.decode(caught.value.body)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/m", "GET, HEAD"),
        ("GET", "/v1/chat/completions", "POST"),
        ("HEAD", "/v1/chat/completions", "POST"),
        ("OPTIONS", "/v1/chat/completions", "POST"),
    ],
)
def test_a_wrong_method_is_405_with_allow(method, path, allow):
    with pytest.raises(ApiError) as caught:
        table().match(method, path)
    assert caught.value.status == 405
    assert caught.value.headers == {"allow": allow}
    assert caught.value.error.message.startswith(f"Not allowed to {method} on {path}.")


async def test_every_route_wants_a_key():
    """Walked from the table, so that a route added tomorrow is in it."""
    routes = api_routes(FakeRouter(config())).table
    assert len(routes) >= 3
    async with running() as server:
        for route in routes:
            path = route.path + ("m" if route.prefix else "")
            assert route.needs_key
            for key in (None, "sk-wrong-key-00000", "' OR 1=1 --", SECRET + "x", SECRET.upper()):
                answer = await ask(
                    server.url, request(b"{}", method=route.method, path=path, key=key)
                )
                assert answer.status == 401, (path, key)
                assert answer.error["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
        assert server.router.opened == []


@pytest.mark.parametrize(
    "path", ["/v1/chat%2fcompletions", "/v1/../v1/chat/completions", "//v1/models", "/V1/MODELS"]
)
async def test_odd_paths_reach_nobody(path):
    async with running() as server:
        answer = await ask(server.url, request(path=path))
        assert answer.status == 404
        assert answer.error["message"] == f"Invalid URL (POST {path})"
        assert not server.router.opened


async def test_models_and_one_model():
    async with (
        running() as server,
        aiohttp.ClientSession(server.url, headers={"authorization": f"Bearer {SECRET}"}) as session,
    ):
        listed = await (await session.get("/v1/models")).json()
        assert listed["object"] == "list"
        assert [card["id"] for card in listed["data"]] == ["m", "org/big:8b"]
        assert {card["object"] for card in listed["data"]} == {"model"}
        for path in ("/v1/models/org/big:8b", "/v1/models/org%2Fbig%3A8b?x=1"):
            answer = await ask(server.url, request(b"", method="GET", path=path))
            assert answer.status == 200
            assert msgspec.json.decode(answer.body)["id"] == "org/big:8b"
        missing = await session.get("/v1/models/none")
        assert missing.status == 404
        assert (await missing.json())["error"]["code"] == "model_not_found"


async def test_head_has_the_headers_of_get_and_no_body():
    async with running() as server:
        get = await ask(server.url, request(b"", method="GET", path="/v1/models"))
        head = await ask(server.url, request(b"", method="HEAD", path="/v1/models"), head_only=True)
        assert head.status == 200
        assert head.headers["content-length"] == get.headers["content-length"]
        both = request(b"", method="HEAD", path="/v1/models") + request(
            b"", method="GET", path="/nowhere"
        )
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", int(server.url.rpartition(":")[2])
        )
        writer.write(both)
        await reader.readuntil(b"\r\n\r\n")
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 404")
        writer.close()


async def test_a_404_needs_no_key_and_no_body():
    async with running() as server:
        answer = await ask(server.url, request(b"", method="POST", path="/v1/foo", key=None))
        assert answer.status == 404
        assert answer.headers["content-type"] == "application/json"
        assert set(answer.error) == {"message", "type", "param", "code"}
