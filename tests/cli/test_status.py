"""`nenya status` against a router that serves, and what it prints of a busy one."""

import asyncio
import json
from contextlib import asynccontextmanager

import msgspec
import pytest

from router.app import Router
from router.cli import main, status
from router.config.reader import parse
from router.policy.quota import Gauge
from router.recent import Error
from router.server.serving import Serving
from router.status import Overview, Status
from tests.server.fake_router import page

ADMIN_KEY = "sk-admin-0123456789"
CONFIG = """
server: {listen: "127.0.0.1:0", admin: "127.0.0.1:0"%s}
engines: {e: {kind: simulated, slots: 4, ttft_ms: 1, tokens_per_s: 5000}}
providers: {p: {base_url: "http://127.0.0.1:1/v1"}}
models: {m: {policy: round_robin, targets: [{engine: e}, {provider: p, model: big, max_inflight: 2}]}}
"""


@asynccontextmanager
async def serving(more: str = ""):
    serving = Serving(Router(parse(CONFIG % more, "a test", {})), page)
    await serving.start()
    try:
        yield serving.admin_url
    finally:
        await serving.stop(0)


async def run(*words: str) -> int:
    return await asyncio.to_thread(main, ["status", *words])


async def test_it_prints_what_the_admin_port_says(capsys):
    async with serving() as url:
        assert await run("--url", url) == 0
        said = capsys.readouterr().out
        assert await run("--url", url, "--json") == 0
        document = msgspec.json.decode(capsys.readouterr().out, type=Status)
    head, *_ = said.splitlines()
    assert head.startswith(f"Nenya {document.version}, ready for 0 s: ")
    assert head.endswith(" 0 requests under way, 0 waiting")
    assert "m      round_robin  1/2" in said
    assert "p/big   admitting  0/2" in said
    assert "latest errors" not in said
    assert "left of its limits" not in said


async def test_the_admin_key_comes_from_the_environment(capsys, monkeypatch):
    async with serving(f", admin_key: {ADMIN_KEY}") as url:
        assert await run("--url", url) == 1
        assert "401: The status wants the admin key" in capsys.readouterr().err
        monkeypatch.setenv("NENYA_ADMIN_KEY", ADMIN_KEY)
        assert await run("--url", url) == 0
        monkeypatch.setenv("OTHER", "schlüssel")
        assert await run("--url", url, "--key-env", "OTHER") == 2


async def test_what_is_no_admin_port_is_said(capsys):
    async with serving() as url:
        assert await run("--url", f"{url}/nowhere") == 1
        assert "404" in capsys.readouterr().err
    assert await run("--url", url) == 1
    assert "`server.admin` of its config says where it is" in capsys.readouterr().err
    assert await run("--url", "9090") == 2


async def test_a_document_of_something_else_is_no_status(capsys, monkeypatch):
    monkeypatch.setattr(status.Client, "get", lambda *_: b'{"version": 3}')
    assert await run() == 1
    assert "is no admin port of a Nenya" in capsys.readouterr().err


def test_watching_goes_on_where_the_router_is_away(capsys, monkeypatch):
    documents = iter([b'{"up": 1}', status.NoServer("nothing answers"), b'{"up": 2}'])
    slept = []

    def get(*_):
        document = next(documents, None)
        if document is None:
            raise KeyboardInterrupt
        if isinstance(document, Exception):
            raise document
        return document

    monkeypatch.setattr(status.Client, "get", get)
    monkeypatch.setattr(status.time, "sleep", slept.append)
    assert main(["status", "--json", "--watch"]) == 130
    said = capsys.readouterr()
    assert [json.loads(line) for line in said.out.splitlines()] == [{"up": 1}, {"up": 2}]
    assert "nothing answers" in said.err
    assert slept == [2.0] * 3


@pytest.mark.parametrize("seconds", ["0", "nan", "often", "4000"])
def test_a_wrong_interval_is_told(capsys, seconds):
    assert main(["status", "--watch", seconds]) == 2
    assert "--watch" in capsys.readouterr().err


def test_a_busy_router():
    router = Router(parse(CONFIG % "", "a test", {}))
    calm = Overview(router).collect("ready")
    provider = msgspec.structs.replace(
        calm.targets[1], state="ejected", until_s=11.6, inflight=2, quota=(Gauge("tokens", 10_000, 2_500, 4.0),)
    )  # fmt: skip
    engine = msgspec.structs.replace(
        calm.engines[0], state="loading", loaded=0.25, detail=f"a{'b' * 99}\nc"
    )
    busy = msgspec.structs.replace(
        calm,
        uptime_s=90_061.0,
        inflight=1,
        waiting=3,
        targets=(calm.targets[0], provider),
        engines=(engine,),
        errors=tuple(
            Error("attempt", "timeout_connect", 0.0, 60.0 * at, count=at, model="m", target="p/big\x1b[2J")
            for at in range(1, 8)
        ),
    )  # fmt: skip
    lines = "\n".join(status.report(busy)).splitlines()
    assert lines[0].endswith("ready for 1 d 1 h: 1 request under way, 3 waiting")
    (line,) = [line for line in lines if line.startswith("p/big")]
    assert "ejected, 12 s left" in line
    assert "2/2" in line
    assert line.endswith("2,500 of 10,000 tokens")
    errors = lines[-status._MOST_ERRORS :]
    assert all(
        "attempt" in one and "timeout_connect" in one and "\x1b" not in one for one in errors
    )
    assert lines[-status._MOST_ERRORS - 1].startswith("latest errors")
    (line,) = [line for line in lines if line.startswith("e") and "simulated" in line]
    assert "loading 25%" in line
    assert line.endswith("b…")
