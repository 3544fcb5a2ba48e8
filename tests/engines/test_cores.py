from __future__ import annotations

import os

import pytest

from engines import cores
from engines.cores import limited_threads


@pytest.fixture
def machine(monkeypatch, tmp_path):
    def of(count, bound, quota):
        monkeypatch.setattr(os, "cpu_count", lambda: count)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)), raising=False)
        path = tmp_path / "cpu.max"
        path.write_text(quota)
        return limited_threads(path)

    return of


def test_a_machine_of_its_own_is_llamacpps_to_count(machine):
    assert machine(8, 8, "max 100000\n") is None
    assert machine(8, 8, "") is None


def test_what_is_less_than_the_machine_counts(machine):
    assert machine(8, 3, "max 100000") == 3
    assert machine(8, 8, "250000 100000") == 2
    assert machine(8, 8, "50000 100000") == 1


@pytest.mark.parametrize(
    ("text", "threads", "said"),
    [
        ("processor : 0\nmodel name\t: Fast CPU\n", 3, "3 threads of Fast CPU"),
        ("model name : Fast CPU\nmodel name : Fast CPU\n", 1, "1 thread of Fast CPU"),
    ],
)
def test_what_a_computation_runs_on(tmp_path, monkeypatch, text, threads, said):
    monkeypatch.setattr(cores, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(text)
    assert cores.described(threads) == said


def test_what_a_computation_runs_on_where_nobody_says(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "CPUINFO", tmp_path / "none")
    assert cores.described(None).endswith(cores.platform.processor() or cores.platform.machine())
    assert cores.described(None).split()[0].isdigit()
