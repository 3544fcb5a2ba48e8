"""What breaks the generator: requests end with a reason, the process is started again, the router serves on."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import openai
import pytest

from engines import starter
from engines.base import EngineError, GenerateRequest
from engines.exl2.engine import ExLlamaV2Engine
from engines.specs import ExLlamaV2Spec, ExLlamaV3Spec, WorkCosts
from router.backends.lifecycle import Settings, State
from router.backends.supervisor import LocalNode
from router.clock import SystemClock
from tests.e2e.serving import SECRET, site
from tests.engines.asking import STORY, ask
from tests.engines.until import until

COSTS = WorkCosts(prefill_token_s=1e-4, step_s=1e-3)
SPEC = ExLlamaV2Spec(model=str(starter.hf_path()), slots=4, cache_tokens=8192, costs=COSTS)
THIRD = ExLlamaV3Spec(model=str(starter.hf_path()), slots=4, cache_tokens=8192, costs=COSTS)
CONFIG = f"""
engines:
  gpu: {{kind: exllamav2, model: {starter.hf_path()}, slots: 4, cache_tokens: 8192,
        costs: {{prefill_token_s: 1.0e-4, step_s: 0.003}}}}
  other: {{kind: simulated, tokens_per_s: 1000}}
models:
  m: {{targets: [{{engine: gpu}}]}}
  other: {{targets: [{{engine: other}}]}}
"""


@pytest.mark.parametrize(
    "step", [1, 4]
)  # in a prompt, which exllamav3 would go on after, and later
@pytest.mark.parametrize("library", ["exllamav2", "exllamav3"])
async def test_an_iteration_that_fails_is_the_end(request, monkeypatch, library, step):
    request.getfixturevalue("exl2_harness" if library == "exllamav2" else "exl3_harness")
    monkeypatch.setenv("HARNESS_FAULT", f"oom:{step}")
    engine = ExLlamaV2Engine(SPEC if library == "exllamav2" else THIRD)
    await engine.start()
    answers = await asyncio.gather(*(ask(engine) for _ in range(3)), return_exceptions=True)
    for error in answers:
        assert isinstance(error, EngineError)
        assert error.kind == "died"
        assert "out of memory" in error.message
    with pytest.raises(EngineError, match="out of memory"):
        engine.health()
    with pytest.raises(EngineError, match="out of memory"):
        await ask(engine)
    await engine.close()


async def test_what_cannot_be_loaded_says_why(exl2_harness, monkeypatch):
    monkeypatch.setenv("HARNESS_FAULT", "load")
    engine = ExLlamaV2Engine(SPEC)
    with pytest.raises(EngineError, match="told not to load"):
        await engine.start()


async def test_a_hanging_generator_is_seen_whoever_has_left(exl2_harness, monkeypatch):
    monkeypatch.setenv("HARNESS_FAULT", "hang:1")
    engine = ExLlamaV2Engine(SPEC)
    await engine.start()
    request = asyncio.create_task(ask(engine))
    await asyncio.sleep(0.1)
    request.cancel()
    await asyncio.wait({request})
    health = engine.health()
    assert health.running + health.waiting == 1
    assert engine.health().iterations == health.iterations


async def test_a_hanging_node_is_killed_and_started_again(exl2_harness, monkeypatch):
    monkeypatch.setenv("HARNESS_FAULT", "hang:3")
    with tempfile.TemporaryDirectory(prefix="nenya-") as folder:
        events = []
        node = LocalNode(
            "gpu",
            SPEC,
            runtime_dir=Path(folder),
            emit=events.append,
            on_available=lambda _: None,
            clock=SystemClock(),
            settings=Settings(hang_s=0.5, grace_s=0.3),
        )
        await node.start()
        await node.wait_ready()
        with pytest.raises(EngineError) as raised:
            async for _ in node.engine.generate(GenerateRequest(messages=STORY)):
                pass
        assert raised.value.kind == "died"
        await until(lambda: any(event.state == "backoff" for event in events), 10)
        await node.wait_ready()
        states = [(event.state, event.detail) for event in events]
        assert ("backoff", "requests run, but nothing moved for 0.5 s") in states
        assert node.state is State.READY
        await node.close()


async def test_the_router_serves_on_while_an_engine_comes_back(exl2_harness, monkeypatch):
    monkeypatch.setenv("HARNESS_FAULT", "oom:40")
    async with site(CONFIG) as here:
        target = here.router.pool.targets["gpu"]
        assert target.load.costs.step_s == 0.003
        async with openai.AsyncOpenAI(
            base_url=here.base_url, api_key=SECRET, max_retries=0
        ) as client:
            question = [{"role": "user", "content": "Tell me a story about a bear."}]
            stream = await client.chat.completions.create(
                model="m", messages=question, stream=True, temperature=0
            )
            text = ""
            with pytest.raises(openai.APIError) as raised:
                async for chunk in stream:
                    text += chunk.choices[0].delta.content or ""
            assert text.startswith("Once upon a time")
            assert raised.value.body["type"] == "upstream_error"
            other = await client.chat.completions.create(model="other", messages=question)
            assert other.choices[0].finish_reason == "stop"
            gpu = here.router._nodes["gpu"]
            await until(lambda: gpu.state is not State.READY, 10)
            await here.router.wait_ready()
            again = await client.chat.completions.create(
                model="m", messages=question, max_tokens=5, temperature=0
            )
            assert text.startswith(again.choices[0].message.content)
        details = " ".join(getattr(event, "detail", "") for event in here.events)
        assert "exit code 5" in details
        assert "out of memory" in details
