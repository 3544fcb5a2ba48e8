"""Engines in processes of their own: killed, started again, and two of them on one GPU behind a router."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from pathlib import Path

import pytest

from engines import starter
from engines.base import EngineError, GenerateRequest
from router import Router, parse
from router.backends.lifecycle import Settings, State
from router.backends.supervisor import LocalNode
from router.clock import SystemClock
from router.errors import ApiError
from tests.engines.asking import GREEDY, STORY, text_of
from tests.engines.until import until

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
START_S = 120
"""A process imports torch, and its first one on a GPU makes a context."""

CONFIG = f"""
engines:
  one: &engine {{kind: exllamav2, model: {starter.hf_path()}, slots: 8, cache_tokens: 16384, answer_tokens: 512,
       costs: {{prefill_token_s: 1.0e-4, step_s: 0.003}}}}
  two: {{kind: exllamav2, model: {starter.hf_path()}, slots: 8, cache_tokens: 16384, answer_tokens: 512,
       costs: {{prefill_token_s: 1.0e-4, step_s: 0.003}}}}
models: {{m: {{targets: [{{engine: one}}, {{engine: two}}]}}}}
"""
QUESTION = [{"role": "user", "content": "Tell me a story about a bear."}]


async def generated(node, **request):
    request = GenerateRequest(messages=STORY, sampling=GREEDY, **request)
    return [event async for event in node.engine.generate(request)]


async def test_a_killed_process_is_started_again(spec):
    with tempfile.TemporaryDirectory(prefix="nenya-") as folder:
        events = []
        node = LocalNode(
            "gpu", spec(), runtime_dir=Path(folder), emit=events.append,
            on_available=lambda _: None, clock=SystemClock(), settings=Settings(),
        )  # fmt: skip
        await node.start()
        await node.wait_ready()
        wanted = text_of(await generated(node, max_tokens=16))
        answer = node.engine.generate(GenerateRequest(messages=STORY, n=4))
        await anext(answer)
        os.kill(node.pid, signal.SIGKILL)
        with pytest.raises(EngineError) as raised:
            async for _ in answer:
                pass
        assert raised.value.kind == "died"
        await until(lambda: any(event.state == "backoff" for event in events), START_S)
        await node.wait_ready()
        assert node.state is State.READY
        assert text_of(await generated(node, max_tokens=16)) == wanted
        await node.close()


async def test_a_router_over_two_engines_on_one_gpu():
    async with Router(parse(CONFIG)) as router:
        served = []
        router.listen(lambda event: served.append(getattr(event, "target", None)))

        async def ask(**fields):
            return await router.chat(
                {"model": "m", "messages": QUESTION, "max_tokens": 32, **fields}
            )

        answers = await asyncio.gather(*(ask(seed=seed) for seed in range(24)))
        assert all(answer.choices[0].message.content for answer in answers)
        assert {"one", "two"} <= set(served)

        # One dies under load: every answer is whole or an explicit error, and the other engine serves on.
        waiting = [asyncio.create_task(ask(seed=seed, max_tokens=400)) for seed in range(12)]
        await asyncio.sleep(0.3)
        os.kill(router._nodes["one"].pid, signal.SIGKILL)
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        for answer in ended:
            assert isinstance(answer, ApiError) or answer.choices[0].finish_reason
        assert any(not isinstance(answer, ApiError) for answer in ended)
        assert (await ask()).choices[0].message.content
        await until(lambda: router._nodes["one"].state is State.READY, START_S)

        # Who leaves is cancelled in the engine.
        async for _ in router.stream({"model": "m", "messages": QUESTION}):
            break
        nodes = [router._nodes[name] for name in ("one", "two")]
        await until(lambda: all(node.engine.health().kv_tokens_used == 0 for node in nodes), 20)
