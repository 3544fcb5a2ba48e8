"""The benchmark of the exllamav2 engine, on the CPU harness: that it runs and what it writes, not how fast."""

from __future__ import annotations

import importlib.util
import json

import pytest

from benchmarks import gpu

if any(importlib.util.find_spec(name) is None for name in ("torch", "exllamav2")):
    pytest.skip("torch and exllamav2 are not installed: make exl2-deps", allow_module_level=True)

HALF = gpu.Measured(50.0, 0.1, 0.2, 10)
WHOLE = gpu.Measured(100.0, 0.1, 0.2, 10)


def test_a_tiny_run(tmp_path, capsys):
    assert gpu.main(["--tiny", "--folder", str(tmp_path), "--json", str(tmp_path / "x.json")]) == 0
    found = json.loads((tmp_path / "x.json").read_text())
    assert [(row["model"], row["jobs"]) for row in found["rows"]] == [("fp16", 1), ("fp16", 4)]
    for row in found["rows"]:
        # An end of turn has all but no probability: both sides wrote what they were asked for.
        assert row["bare"]["tokens"] == row["ours"]["tokens"] == 6 * row["jobs"]
        assert row["ratio"] > 0
        assert row["ours"]["ttft_max_s"] >= row["ours"]["ttft_p50_s"] > 0
    assert "says nothing of speed" in found["verdict"]
    shown = capsys.readouterr().out
    assert "| fp16 | 4 |" in shown
    assert found["date"] in shown


def test_both_sides_are_asked_the_same_and_never_twice():
    load = gpu.Load()
    asked = [gpu.requests(load, jobs, turn) for jobs in (1, 8) for turn in (0, 1)]
    assert asked == [gpu.requests(load, jobs, turn) for jobs in (1, 8) for turn in (0, 1)]
    prompts = [request.prompt for turn in asked for request in turn]
    assert len(set(prompts)) == len(prompts)


def test_a_slow_engine_is_not_right():
    rows = [gpu.Row("a", 1, WHOLE, WHOLE), gpu.Row("b", 8, WHOLE, HALF)]
    assert gpu.verdict(rows, [], tiny=False).startswith("not right: lowest ratio 0.500 (b, 8 jobs)")
    assert gpu.verdict(rows[:1], [], tiny=False).startswith("right: lowest ratio 1.000")
    assert gpu.verdict(rows[:1], ["no EXL2"], tiny=False).startswith("not right")
    assert not gpu.verdict(rows, [], tiny=True).startswith("not right")


def test_medians():
    turns = [
        gpu.Turn(1.0, 100, (0.1, 0.3)),
        gpu.Turn(2.0, 100, (0.2, 0.4)),
        gpu.Turn(4.0, 100, (9, 9)),
    ]
    assert gpu.summary(turns) == gpu.Measured(50.0, 0.3, 0.4, 300)


def test_a_model_that_cannot_be_converted_is_said(tmp_path, monkeypatch):
    """There are no kernels here, so ExLlamaV2's converter fails, as it would on a broken machine."""
    import subprocess

    from benchmarks.random_model import TINY, make

    folder = make(tmp_path / "tiny", TINY)
    with pytest.raises(subprocess.SubprocessError):
        gpu.convert(folder, 60)
    assert (tmp_path / "tiny-work" / "convert.log").read_text()
    made = tmp_path / "tiny-4.0bpw"
    made.mkdir(exist_ok=True)
    (made / "config.json").write_text("{}")
    assert gpu.convert(folder, 60) == made  # what is there isn't made again
