"""What work costs: fitted to made figures, measured of an engine under a clock of its own, and kept."""

from __future__ import annotations

import asyncio
import json

import pytest
from msgspec.structs import replace

from engines import measured, starter
from engines.base import Delta, EngineError, EngineInfo, Finish, Usage, WorkCosts
from engines.calibration import Prefill, Steps, Unmeasurable, fit, measure
from engines.measured import Measured, anywhere, known, remember, remembered, settings_of
from engines.simulated.engine import SimulatedEngine
from engines.specs import ExLlamaV2Spec, LlamaCppSpec, SimulatedSpec
from tests.engines.simulated.test_engine import World

COSTS = WorkCosts(
    prefill_token_s=1e-4, attention_s=2e-8, step_s=0.012, request_s=3e-4, context_s=5e-8
)


def prompt(tokens, beside=0.004):
    return Prefill(
        tokens, beside + COSTS.prefill_token_s * tokens + COSTS.attention_s * tokens**2 / 2
    )


def step(requests, context):
    return Steps(
        requests, context, COSTS.step_s + COSTS.request_s * requests + COSTS.context_s * context
    )


PROMPTS = [prompt(tokens) for tokens in (256, 1024, 2048, 4096)]
STEPS = [step(1, 64), step(4, 256), step(16, 1024), step(4, 16_384)]


def shown(costs):
    return pytest.approx({name: getattr(costs, name) for name in costs.__struct_fields__}, rel=1e-6)


def test_costs_come_back_from_what_they_make():
    found = fit(PROMPTS, STEPS)
    assert {name: getattr(found, name) for name in found.__struct_fields__} == shown(COSTS)


def test_no_cost_is_negative():
    noisy = [*STEPS[:3], Steps(4, 16_384, 0.001)]
    found = fit(PROMPTS, noisy)
    assert found.context_s == 0
    assert found.step_s > 0


def test_few_figures_give_few_costs():
    found = fit([prompt(256, beside=0.0)], [step(1, 64)])
    assert found.step_s == pytest.approx(step(1, 64).seconds, rel=0.01)
    assert found.attention_s == found.context_s == found.request_s == 0


def test_nothing_was_timed():
    with pytest.raises(Unmeasurable):
        fit([], STEPS)
    with pytest.raises(Unmeasurable):
        fit(PROMPTS, [])


# Of an engine.


class Patient(World):
    """Its clock stands still until everybody has heard of the step that ended."""

    async def rest(self, seconds):
        for _ in range(10):
            await asyncio.sleep(0)
        self.now_s += seconds


async def measured_of(**spec):
    world = Patient()
    engine = SimulatedEngine(SimulatedSpec(**spec), world)
    info = await engine.start()
    said = []
    try:
        return await measure(engine, info, said.append, world.time), said
    finally:
        await engine.close()


async def test_an_engines_own_figures_are_found():
    found, said = await measured_of(
        ttft_ms=30, tokens_per_s=50, prefill_tokens_per_s=5000, batch_penalty=0.05, slots=8,
        prefill_chunk_tokens=8192,
    )  # fmt: skip
    costs = found.costs
    assert costs.prefill_token_s == pytest.approx(1 / 5000, rel=0.01)
    assert costs.step_s + costs.request_s == pytest.approx(0.02, rel=0.01)
    assert costs.request_s == pytest.approx(0.001, rel=0.05)
    assert costs.context_s < 1e-9
    assert costs.attention_s < 1e-9
    assert found.error < 0.01
    assert [one.requests for one in found.steps] == [1, 4, 8, 4]
    assert said[0].startswith("a prompt of ")
    assert said[-1].startswith("a step of 4 answers over ")
    assert len(said) == len(found.prefills) + len(found.steps)


async def test_a_slow_machine_is_not_asked_for_long_prompts():
    found, _ = await measured_of(prefill_tokens_per_s=200, slots=2)
    assert [round(one.tokens, -2) for one in found.prefills] == [300, 1000]
    assert max(one.context_tokens for one in found.steps) == pytest.approx(10 * 200, rel=0.1)


@pytest.mark.parametrize("slots", [1, 2, 64])
async def test_any_number_of_slots(slots):
    found, _ = await measured_of(slots=slots, prefill_tokens_per_s=1e6, kv_tokens=20_480)
    most = max(one.requests for one in found.steps)
    assert most == min(slots, 20_480 // 512)
    assert found.costs.step_s + found.costs.request_s == pytest.approx(0.01, rel=0.02)


class Terse:
    """An engine that says little; each of its prompts takes longer than its answers."""

    def __init__(self, words):
        self.words = words
        self.limits = []

    async def generate(self, request):
        self.limits.append((request.max_tokens, request.response_format is not None))
        for _ in range(self.words):
            yield Delta(0, "x")
        yield Finish(0, "stop")
        yield Usage(10, self.words)


async def test_answers_that_are_too_short():
    engine = Terse(2)
    info = EngineInfo("terse", "m", 2048, 1, 2048)
    with pytest.raises(Unmeasurable, match="1 answers at a time were too short"):
        await measure(engine, info)
    assert [limit for limit in engine.limits if limit[0] > 8] == [
        (24, False), (96, True), (384, True), (1536, True)
    ]  # fmt: skip


class Shy(Terse):
    """It says nothing to every other prompt."""

    async def generate(self, request):
        self.words = 0 if self.words else 48
        async for event in super().generate(request):
            yield event


async def test_an_answer_without_a_token_is_asked_for_again():
    engine = Shy(1)
    found = await measure(engine, EngineInfo("shy", "m", 2048, 1, 2048))
    assert found.prefills
    assert len(engine.limits) == 2 * (1 + len(found.prefills) + len(found.steps))


async def test_an_answer_without_a_token():
    with pytest.raises(Unmeasurable, match="an answer had no token"):
        await measure(Terse(0), EngineInfo("terse", "m", 2048, 1, 2048))


# What is kept.


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "nenya" / "costs"


SPEC = LlamaCppSpec(model="starter", threads=1)


def record(spec=SPEC, device="a CPU", **changes):
    said = {
        "costs": COSTS, "model": "m", "device": device, "settings": settings_of(spec), "at": 1.0, "error": 0.1
    }  # fmt: skip
    return Measured(**(said | changes))


def test_what_is_kept_is_found_again(kept):
    assert remembered(SPEC, "a CPU") is None
    file = remember(record())
    assert file.parent == kept
    assert remembered(SPEC, "a CPU") == record()
    assert remembered(SPEC, "another CPU") is None
    assert [path.suffix for path in kept.iterdir()] == [".json"]


def test_costs_of_the_config_are_no_setting():
    assert settings_of(replace(SPEC, costs=COSTS)) == settings_of(SPEC)


@pytest.mark.parametrize(
    "other", [{"slots": 5}, {"context_tokens": 2048}, {"threads": 2}, {"model": "/nowhere.gguf"}]
)
def test_other_settings_are_measured_anew(other):
    remember(record())
    assert remembered(replace(SPEC, **other), "a CPU") is None


def test_another_version_is_measured_anew(monkeypatch):
    remember(record())
    monkeypatch.setattr(measured, "_version", lambda package: f"{package} 9")
    assert remembered(SPEC, "a CPU") is None


def test_a_model_is_known_by_its_name_and_size(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "m").mkdir(parents=True)
        (tmp_path / name / "m" / "x.safetensors").write_bytes(bytes(100))
    one, two = (ExLlamaV2Spec(model=str(tmp_path / name / "m")) for name in ("a", "b"))
    assert settings_of(one) == settings_of(two)
    (tmp_path / "b" / "m" / "x.safetensors").write_bytes(bytes(101))
    assert settings_of(one) != settings_of(two)
    drafted = [replace(one, draft_model=str(tmp_path / name / "m")) for name in ("a", "b")]
    assert len({settings_of(spec) for spec in (one, *drafted)}) == 3


def test_what_was_measured_on_any_device(kept):
    for at, device in enumerate(["a CPU", "another", "a third"]):
        remember(record(device=device, at=float(at)))
    remember(record(replace(SPEC, slots=9)))
    assert [one.device for one in anywhere(SPEC)] == ["a third", "another", "a CPU"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"costs": {"prefill_token_s": -1}}'])
def test_a_file_that_is_none_is_as_if_it_were_not_there(text):
    file = remember(record())
    file.write_text(text)
    assert remembered(SPEC, "a CPU") is None
    assert list(anywhere(SPEC)) == []


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert remember(record()) is None
    assert remembered(SPEC, "a CPU") is None
    assert list(anywhere(SPEC)) == []


def test_a_user_without_a_home(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(measured.Path, "home", no_home)
    assert remember(record()) is None
    assert remembered(SPEC, "a CPU") is None
    assert list(anywhere(SPEC)) == []


async def test_an_engine_is_measured_once(monkeypatch):
    calls = []

    async def anew(engine, info, spec):
        calls.append(info.device)
        return record(spec, info.device)

    monkeypatch.setattr(measured, "anew", anew)
    info = EngineInfo("x", "m", 4096, 4, 16384, device="a GPU")
    assert await known(Terse(1), info, SPEC) == COSTS
    assert await known(Terse(1), info, SPEC) == COSTS
    assert calls == ["a GPU"]


@pytest.mark.parametrize("why", [Unmeasurable("too short"), EngineError("invalid", "no prompt")])
async def test_an_engine_that_cannot_be_measured_starts_without(monkeypatch, kept, why):
    async def anew(*_):
        raise why

    monkeypatch.setattr(measured, "anew", anew)
    assert await known(Terse(1), EngineInfo("x", "m", 4096, 4, 16384), SPEC) is None
    assert not kept.exists()


async def test_an_engine_that_dies_of_it_says_so(monkeypatch):
    async def anew(*_):
        raise EngineError("died", "out of memory")

    monkeypatch.setattr(measured, "anew", anew)
    with pytest.raises(EngineError, match="out of memory"):
        await known(Terse(1), EngineInfo("x", "m", 4096, 4, 16384), SPEC)


async def test_llama_cpp_finds_at_its_start_what_was_kept():
    pytest.importorskip("xllamacpp")
    if not starter.gguf_path().exists():
        pytest.skip("the starter model is not there")
    from engines.llamacpp import LlamaCppEngine

    engine = LlamaCppEngine(SPEC)
    info = await engine.start()
    await engine.close()
    assert info.costs is None
    assert info.device.startswith("1 thread of ")
    remember(record(device=info.device))
    for spec, costs in ((SPEC, COSTS), (replace(SPEC, costs=replace(COSTS, step_s=1.0)), None)):
        engine = LlamaCppEngine(spec)
        info = await engine.start()
        await engine.close()
        assert info.costs == (costs or spec.costs)


def test_a_record_can_be_read_by_people():
    said = json.loads(remember(record()).read_text())
    assert (said["model"], said["device"], said["costs"]["step_s"]) == ("m", "a CPU", 0.012)
