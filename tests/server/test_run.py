"""The whole process: signals, draining, exit codes. Real sockets, a real router, a simulated engine."""

import asyncio
import os
import re
import signal
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.fake_router import SECRET, ask, connect, request

ROOT = Path(__file__).parents[2]


def chat(tokens: int, *, stream: bool = True) -> bytes:
    return request(
        msgspec.json.encode({
            "model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens, "stream": stream,
        })
    )  # fmt: skip


@asynccontextmanager
async def process(drain_s: float = 5, kind: str = "simulated"):
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.server.served", str(drain_s), kind, cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"},
    )  # fmt: skip
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
        child._transport.close()


async def addresses(child) -> tuple[str, str]:
    line = await asyncio.wait_for(child.stdout.readline(), 20)
    assert line, (await child.stderr.read()).decode()
    url, admin_url = line.decode().split()
    return url, admin_url


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_exits_0(number):
    async with process() as child:
        url, admin_url = await addresses(child)
        reader, writer = await connect(url)
        writer.write(chat(24))
        await reader.readuntil(b"data: ")
        child.send_signal(number)
        await asyncio.sleep(0.1)
        assert (await ask(admin_url, request(b"", method="GET", path="/readyz"))).status == 503
        assert (await ask(admin_url, request(b"", method="GET", path="/healthz"))).status == 200
        with pytest.raises(ConnectionError):
            await connect(url)
        rest = await asyncio.wait_for(reader.read(), 5)
        assert b"[DONE]" in rest
        assert rest.endswith(b"0\r\n\r\n")
        assert await asyncio.wait_for(child.wait(), 5) == 0
        log = (await child.stderr.read()).decode()
        assert SECRET not in log
        assert "Traceback" not in log
        writer.close()


async def test_what_outlasts_the_drain_gets_an_error_and_a_second_signal_ends_at_once():
    async with process(drain_s=60) as child:
        url, _ = await addresses(child)
        reader, writer = await connect(url)
        writer.write(chat(4000))
        await reader.readuntil(b"data: ")
        child.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        started = time.monotonic()
        child.send_signal(signal.SIGTERM)
        rest = await asyncio.wait_for(reader.read(), 5)
        assert b'"code":"shutting_down"' in rest
        assert not rest.endswith(b"0\r\n\r\n")
        assert await asyncio.wait_for(child.wait(), 5) == 1
        assert time.monotonic() - started < 3
        writer.close()


async def test_a_signal_before_anything_is_ready_exits_0():
    """The listeners are open all the while."""
    async with process(kind="loading") as child:
        line = ""
        while "listening on" not in line:
            line = (await asyncio.wait_for(child.stderr.readline(), 20)).decode()
        admin_url = line.split()[-1]
        assert (await ask(admin_url, request(b"", method="GET", path="/healthz"))).status == 200
        child.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(child.wait(), 5) == 0
        assert "Traceback" not in (await child.stderr.read()).decode()


async def test_an_engine_that_cannot_load_exits_1_with_a_clean_error():
    async with process(kind="missing") as child:
        assert await asyncio.wait_for(child.wait(), 25) == 1
        log = (await child.stderr.read()).decode()
        assert "engine e" in log
        assert "Traceback" not in log
        assert await child.stdout.read() == b""


async def test_the_pages_counts_add_up():
    async with process() as child:
        url, admin_url = await addresses(child)
        for stream in (False, True, False):
            reader, writer = await connect(url)
            writer.write(chat(3, stream=stream))
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.2)
            writer.close()
        answer = await ask(admin_url, request(b"", method="GET", path="/metrics"))
        text = answer.body.decode()
        samples = {
            (
                s.name,
                s.labels.get("outcome") or s.labels.get("type") or s.labels.get("state") or "",
            ): s.value
            for family in text_string_to_metric_families(text)
            for s in family.samples
        }
        assert samples["nenya_requests_total", "ok"] == 3
        assert samples["nenya_tokens_total", "output"] == 9
        assert samples["nenya_target_inflight_requests", ""] == 0
        assert samples["nenya_target_state", "admitting"] == 1
        assert samples["gen_ai_server_time_to_first_token_seconds_count", ""] == 1
        assert not re.search(SECRET, text)
        child.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(child.wait(), 5) == 0
