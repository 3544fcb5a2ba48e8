"""Every panel of every dashboard has something to show, asked of a real Prometheus that scrapes a real router."""

from __future__ import annotations

import math
import re
import shutil
import subprocess

import aiohttp
import pytest
import yaml

from tests.grafana.prometheus import FOLDER, boards, needs_prometheus, panels, prometheus
from tests.grafana.scene import scene

ZERO = {("limits", "Usage records lost"): "the scene's router keeps no books"}
"""Panels that may show nothing but zeros, by dashboard and title, and why."""


def asked(expr: str) -> str:
    """A panel's query as Grafana would ask it, with everything chosen."""
    filled = re.sub(r"\$(instance|model|target|engine)\b", ".*", expr)
    filled = filled.replace("$__rate_interval", "1m")
    assert "$" not in filled
    return filled


async def without_data(prometheus_) -> list[str]:
    """Panels, variables and rules that gave no number, and panels that gave 0 all the while."""
    missing = []
    for name, board in boards().items():
        for panel in panels(board):
            for target in panel["targets"]:
                expr = asked(target["expr"])
                values = await prometheus_.query(expr)
                highest = await prometheus_.query(f"max_over_time(({expr})[1m:400ms])")
                may_be_zero = (name, panel["title"]) in ZERO
                if all(map(math.isnan, values)) or not (may_be_zero or any(highest)):
                    missing.append(f"{name}: {panel['title']}: {target['expr']}")
        for variable in board["templating"]["list"]:
            found = re.fullmatch(r"label_values\((\w+), (\w+)\)", str(variable.get("query")))
            if found and not await prometheus_.get(
                f"label/{found[2]}/values", **{"match[]": found[1]}
            ):
                missing.append(f"{name}: ${variable['name']}")
    rules = yaml.safe_load((FOLDER / "prometheus" / "rules.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            values = await prometheus_.query(rule["record"])
            if all(map(math.isnan, values)):
                missing.append(f"rule {rule['record']}")
    return missing


async def unhealthy(prometheus_) -> list[str]:
    """Rules that Prometheus couldn't evaluate."""
    groups = (await prometheus_.get("rules"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 10
    return [rule["name"] for rule in rules if rule["health"] != "ok"]


def lint(page: str) -> list[str]:
    """What promtool says of a page. That vLLM's names have a colon isn't ours to change."""
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    assert done.returncode in {0, 3}, done.stderr
    return [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if not re.fullmatch(r"vllm:\w+ metric names should not contain ':'", line)
    ]


@needs_prometheus
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
async def test_every_panel_has_data_and_the_page_is_clean(tmp_path):
    async with scene() as on, prometheus(on.site.admin_url, tmp_path) as found:
        await on.round()
        await on.crash()
        await found.scraped(2)
        for _ in range(3):  # once is enough, where there is a core for everybody
            await on.round()
            await found.scraped(4)
            missing = await without_data(found)
            if not missing:
                break
        broken = await unhealthy(found)
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{on.site.admin_url}/metrics") as answer,
        ):
            page = await answer.text()
    assert missing == []
    assert broken == []
    assert lint(page) == []
