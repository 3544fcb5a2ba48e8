"""The admin port."""

import asyncio
import threading

import msgspec
import pytest

from router.server.serving import Serving
from tests.server.fake_router import FakeRouter, ask, config, request, running


def get(path: str, **more: str) -> bytes:
    return request(b"", method="GET", path=path, key=None, **more)


async def test_ready_and_not():
    async with running() as server:
        answer = await ask(server.admin_url, get("/readyz"))
        assert (answer.status, msgspec.json.decode(answer.body)) == (200, {"status": "ready"})
        server.router.is_ready = False
        answer = await ask(server.admin_url, get("/readyz"))
        assert answer.status == 503
        assert msgspec.json.decode(answer.body) == {
            "status": "not ready",
            "reason": "no model can be served",
        }
        assert (await ask(server.admin_url, get("/healthz"))).status == 200
        assert b"/metrics" in (await ask(server.admin_url, get("/"))).body


async def test_metrics_are_read_on_the_loop_and_rendered_off_it():
    threads = []

    def scrape(accept):
        threads.append(threading.current_thread())

        def render():
            threads.append(threading.current_thread())
            return "text/plain; charset=utf-8", f"# {accept}\n".encode()

        return render

    serving = Serving(FakeRouter(config()), scrape)
    await serving.start()
    answer = await ask(serving.admin_url, get("/metrics", headers="accept: a/b\r\n"))
    assert (answer.status, answer.body) == (200, b"# a/b\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threads[0]
    await serving.stop(0)


@pytest.mark.parametrize("path", ["/status", "/metrics", "/healthz", "/readyz"])
async def test_other_sites_pages_get_nothing(path):
    async with running() as server:
        answer = await ask(server.admin_url, get(path, headers="origin: http://evil.example\r\n"))
        assert answer.status == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "path",
    ["/METRICS", "//metrics", "/%6detrics", "/x/../metrics", "/metrics/", "/Status", "/static/"],
)
async def test_other_spellings_are_404(path):
    async with running() as server:
        assert (await ask(server.admin_url, get(path))).status == 404
        assert (await ask(server.url, get(path))).status == 404


async def test_the_admin_ports_pages_are_not_the_apis():
    async with running() as server:
        for path in ("/", "/status", "/metrics", "/static/page.css"):
            assert (await ask(server.url, get(path))).status == 404
        assert (await ask(server.admin_url, get("/v1/models"))).status == 404


async def test_wrong_methods_and_head():
    async with running() as server:
        answer = await ask(server.admin_url, request(b"{}", path="/metrics"))
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
        assert (
            await ask(server.admin_url, request(b"", method="HEAD", path="/readyz"), head_only=True)
        ).status == 200


async def test_the_admin_port_can_be_off():
    async with running(admin=None) as server:
        assert server.serving.admin_url is None


async def test_it_is_hardened_like_the_other():
    async with running(header_timeout_s=0.2) as server:
        bad = await ask(server.admin_url, b"GET /metrics HTTP/1.1\r\nhost: a/b\r\n\r\n")
        assert bad.status == 400
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", int(server.admin_url.rpartition(":")[2])
        )
        writer.write(b"GET /met")
        assert await asyncio.wait_for(reader.read(), 1) == b""
        writer.close()
