"""The GPU engine measures what work costs on it when it is first started, and finds that again."""

from __future__ import annotations

import json

import pytest

from engines import measured, starter
from engines.exl2.engine import ExLlamaV2Engine
from engines.specs import ExLlamaV2Spec
from router.cli import main

SPEC = ExLlamaV2Spec(model=str(starter.hf_path()), slots=2, cache_tokens=2048, context_tokens=1024)


@pytest.fixture
def kept(exl2_harness, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "nenya" / "costs"


async def started():
    engine = ExLlamaV2Engine(SPEC)
    try:
        return await engine.start()
    finally:
        await engine.close()


async def test_costs_are_measured_once(kept, monkeypatch):
    info = await started()
    assert info.device == "a CPU"
    assert info.costs.step_s > 0
    (file,) = kept.iterdir()
    assert json.loads(file.read_text())["device"] == "a CPU"

    async def again(*_):
        raise AssertionError("measured twice")

    monkeypatch.setattr(measured, "anew", again)
    assert (await started()).costs == info.costs


def test_calibrating_measures_and_the_next_start_finds_it(kept, tmp_path, capsys):
    config = tmp_path / "nenya.yaml"
    engine = (
        f"kind: exllamav2, model: {SPEC.model}, slots: 2, cache_tokens: 2048, context_tokens: 1024"
    )
    config.write_text(
        f"engines: {{gpu: {{{engine}}}}}\nmodels: {{m: {{targets: [{{engine: gpu}}]}}}}\n"
    )
    assert main(["engines", "calibrate", str(config), "--json"]) == 0
    told = capsys.readouterr()
    (outcome,) = json.loads(told.out)
    assert (outcome["state"], outcome["found"]["device"]) == ("measured", "a CPU")
    assert "gpu: a step of 2 answers over " in told.err
    found = measured.remembered(SPEC, "a CPU")
    assert found.costs.step_s == pytest.approx(outcome["costs"]["step_s"])
    assert main(["engines", "calibrate", str(config), "--json"]) == 0
    (outcome,) = json.loads(capsys.readouterr().out)
    assert outcome["state"] == "known"
