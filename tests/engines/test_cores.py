from __future__ import annotations

import os

import pytest

from engines.cores import limited_threads


@pytest.fixture
def machine(monkeypatch, tmp_path):
    def of(cores, bound, quota):
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
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
