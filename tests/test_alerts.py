"""Rules and alerts, by Prometheus' own tool."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "grafana" / "prometheus"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    "command",
    [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules.yml", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ],
)
def test_they_are_right_and_fire_when_they_should(command):
    done = subprocess.run(
        ["promtool", *command], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_runbook():
    page = (FOLDER.parents[1] / "docs" / "dashboards.md").read_text().lower()
    names = [
        line.split("alert:")[1].strip()
        for line in (FOLDER / "alerts.yml").read_text().splitlines()
        if "alert:" in line
    ]
    assert len(names) > 5
    assert [name for name in names if f"### {name.lower()}" not in page] == []
