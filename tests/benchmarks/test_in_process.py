"""The server without sockets answers every request, and `python -m benchmarks` runs what it is told."""

import logging

import msgspec
import pytest

from benchmarks import __main__ as every
from benchmarks import in_process


def test_all_workloads_are_answered_and_measured(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(in_process, "ROUNDS", 1)
    handlers = logging.root.handlers[:]
    arguments = ["--requests", "70", "--policy", "expected_cost"]
    assert in_process.main([*arguments, "--json", str(tmp_path / "costs.json")]) == 0
    costs = msgspec.json.decode((tmp_path / "costs.json").read_bytes(), type=list[in_process.Cost])
    assert [one.workload for one in costs] == list(in_process.WORKLOADS)
    assert all(0 < one.loop_us <= one.process_us * 1.01 for one in costs)
    assert all(one.policy == "expected_cost" for one in costs)
    assert logging.root.handlers == handlers
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(costs)


def test_an_answer_that_is_not_good_ends_the_measurement(monkeypatch):
    monkeypatch.setattr(in_process, "SECRET", "sk-unknown")
    monkeypatch.setattr(in_process, "_config", lambda _, home: in_process.Config(
        accounts=in_process.Accounts(pepper="0123456789abcdef"),
        keys=[in_process.Key(id="me", secret="sk-in-process-0123456789")],
        providers={"a": in_process.Provider(base_url="http://127.0.0.1:1/v1")},
        models={"m": in_process.Model(targets=[in_process.Target(provider="a")])},
    ))  # fmt: skip
    with pytest.raises(RuntimeError, match="401"):
        in_process.main(["--requests", "32"])


def test_those_named_run_in_turn_and_leave_their_figures(monkeypatch, capsys, tmp_path):
    seen = []
    for name in ("micro", "hot_path"):
        module = every.import_module(f"benchmarks.{name}")
        monkeypatch.setattr(module, "main", lambda argv, name=name: seen.append((name, argv)) or 0)
    assert every.main(["hot_path", "micro", "--out", str(tmp_path / "new")]) == 0
    assert seen == [
        (name, ["--json", str(tmp_path / "new" / f"{name}.json")]) for name in ("hot_path", "micro")
    ]
    assert capsys.readouterr().out.split() == ["hot_path", "micro"]


def test_a_name_that_is_none_is_told(capsys):
    with pytest.raises(SystemExit):
        every.main(["speed"])
    assert "no such benchmark: speed" in capsys.readouterr().err
