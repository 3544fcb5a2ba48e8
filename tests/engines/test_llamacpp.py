"""What is llama.cpp's own: its files, its signals, its port, and a cancel within a prompt."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from engines import starter
from engines.base import EngineError, GenerateRequest
from engines.llamacpp import LlamaCppEngine
from engines.specs import LlamaCppSpec
from tests.engines.until import until

pytest.importorskip("xllamacpp")
needs_starter = pytest.mark.skipif(
    not starter.gguf_path().exists(), reason="the starter model is not there"
)


@pytest.fixture
async def engine():
    engine = LlamaCppEngine(LlamaCppSpec(model="starter", threads=1, slots=2))
    engine.info = await engine.start()
    yield engine
    await engine.close()


def saying(content, **fields):
    messages = json.dumps([{"role": "user", "content": content}]).encode()
    return GenerateRequest(messages=messages, **fields)


async def refused(path):
    with pytest.raises(EngineError) as raised:
        await LlamaCppEngine(LlamaCppSpec(model=str(path))).start()
    return raised.value


async def test_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_text("<html>Not found</html>")
    error = await refused(path)
    assert error.kind == "invalid"
    assert "is no GGUF file: it starts with b'<htm'" in error.message


@needs_starter
@pytest.mark.parametrize(
    ("cut", "said"),
    [(slice(100_000), "is cut short: download it again"), (slice(-100), "could not load")],
)
async def test_a_file_that_is_cut_short(tmp_path, cut, said):
    path = tmp_path / "m.gguf"
    path.write_bytes(starter.gguf_path().read_bytes()[cut])
    error = await refused(path)
    assert error.kind == "invalid"
    assert said in error.message
    assert "cut short" in error.message


@needs_starter
async def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    error = await refused(starter.gguf_path())
    assert error.kind == "unsupported"
    assert "pip install 'nenya[llamacpp]'" in error.message


@needs_starter
async def test_signals_stay_pythons():
    caught = []
    before = signal.signal(signal.SIGTERM, lambda *_: caught.append(True))
    try:
        engine = LlamaCppEngine(LlamaCppSpec(model="starter", threads=1))
        await engine.start()
        signal.raise_signal(signal.SIGTERM)
        assert caught
        assert [event async for event in engine.generate(saying("hi", max_tokens=2))]
        await engine.close()
    finally:
        signal.signal(signal.SIGTERM, before)


@needs_starter
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_nothing_listens_that_can_be_reached():
    def listening():
        lines = Path("/proc/self/net/tcp").read_text().splitlines()
        mine = {
            link.readlink().name for link in Path("/proc/self/fd").iterdir() if link.is_symlink()
        }
        return [line for line in lines if f"socket:[{line.split()[9]}]" in mine]

    before = listening()
    engine = LlamaCppEngine(LlamaCppSpec(model="starter", threads=1))
    await engine.start()
    assert listening() == before
    await engine.close()


@needs_starter
async def test_the_context_is_the_models_where_it_is_shorter():
    engine = LlamaCppEngine(LlamaCppSpec(model="starter", threads=1, context_tokens=1_000_000))
    info = await engine.start()
    assert info.context_tokens < 1_000_000
    with pytest.raises(EngineError, match=str(info.context_tokens)):
        await anext(engine.generate(saying("word " * info.context_tokens)))
    await engine.close()


@needs_starter
async def test_a_cancel_within_a_prompt(engine):
    """Long prompts on all slots, cancelled before their first token."""
    content = "one two three " * (engine.info.context_tokens // 12)
    tasks = [
        asyncio.create_task(anext(engine.generate(saying(f"{at} {content}")))) for at in range(3)
    ]
    await until(lambda: engine.health().kv_tokens_used)
    assert engine.health().waiting == 1
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert engine.health().waiting == 0
    assert await until(lambda: not engine.health().running) < 1  # the prompts take longer


@needs_starter
async def test_a_prefix_is_reused(engine):
    usages = []
    for _ in "12":
        request = saying("Which city is the capital of France?", max_tokens=3)
        usages.append([event async for event in engine.generate(request)][-1])
    assert usages[1].cached_input_tokens > usages[1].input_tokens // 2


@needs_starter
async def test_requests_after_the_end(engine):
    await engine.close()
    with pytest.raises(EngineError) as raised:
        await anext(engine.generate(saying("hi")))
    assert raised.value.kind == "died"


@needs_starter
@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        (b'"x"', "invalid"),
        (b'[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,x"}}]}]',
         "unsupported"),
    ],
)  # fmt: skip
async def test_what_the_template_refuses_is_the_requests_fault(engine, messages, kind):
    with pytest.raises(EngineError) as raised:
        await anext(engine.generate(GenerateRequest(messages=messages)))
    assert raised.value.kind == kind
    assert engine.health().running == 0
