"""OpenAI's Node SDK over real sockets. Runs where node is and `make node-deps` has put the SDK."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from engines.simulated.engine import SimulatedEngine
from engines.specs import SimulatedSpec
from tests.e2e.serving import SECRET, site
from tests.operations import any_operation
from tests.upstream import Upstream, rate_limited

NODE = Path(__file__).parents[1] / "node"
FAST = SimulatedSpec(ttft_ms=1, tokens_per_s=5000, answer_tokens=60)

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (NODE / "node_modules" / "openai").is_dir(),
    reason="needs node, and OpenAI's Node SDK from `make node-deps`",
)


async def run(*arguments: str) -> dict:
    node = shutil.which("node")
    process = await asyncio.create_subprocess_exec(
        node,
        str(NODE / "ask.mjs"),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


@needs_node
async def test_the_node_sdk_gets_what_it_asks_for():
    async with Upstream(rate_limited("1"), default=any_operation()) as up:
        config = (
            f"providers: {{p: {{base_url: {up.url!r}}}}}\nengines: {{s: {{kind: simulated}}}}\n"
            "models: {engine: {targets: [{engine: s}]}, upstream: {targets: [{provider: p, model: up}]}}\n"
            "retry: {attempts: 1}\n"
        )
        async with site(config, {"s": SimulatedEngine(FAST)}) as served:
            got = await run(served.base_url, SECRET)
    assert got["models"] == ["engine", "upstream"]
    assert got["whole"] == got["text"] != ""
    assert got["usage"] == got["streamed_usage"]
    assert got["request_id"].startswith("req_")
    assert got["version"] == "2020-10-01"
    assert got["call"]["name"] == "get_weather"
    assert got["call"]["arguments"].keys() == got["json"].keys() == {"city"}
    assert got["retried"] == "Hello there."
    assert got["completion"] == " there"
    assert got["embedding"] == [0.5, -1.0]
    error = {"type": "invalid_request_error"}
    assert got["bad"] == {
        **error,
        "kind": 400,
        "param": "temperature",
        "code": "decimal_above_max_value",
    }
    assert got["missing"] == {**error, "kind": 404, "param": None, "code": "model_not_found"}
