"""Rules and alerts, by Prometheus' own tool."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml

from tests.grafana.prometheus import FOLDER as GRAFANA

FOLDER = GRAFANA / "prometheus"


def alerts() -> list[str]:
    """Names of all."""
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule["alert"] for rule in group["rules"]]


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


def test_each_is_tested_both_ways():
    cases = [
        case
        for test in yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    firing = {case["alertname"] for case in cases if case.get("exp_alerts")}
    silent = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    assert firing == silent == set(alerts())


def test_every_alert_has_a_runbook():
    page = (GRAFANA.parent / "docs" / "dashboards.md").read_text().lower()
    names = alerts()
    assert len(names) > 5
    assert [name for name in names if f"### {name.lower()}" not in page] == []
