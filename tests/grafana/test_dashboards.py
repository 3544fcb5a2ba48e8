"""The dashboards that are committed are those of the code, in Grafana's schema, and every panel says what it is."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.build import stale
from tests.grafana.prometheus import FOLDER, boards, panels

BOARDS = boards()
PANELS = [
    pytest.param(name, panel, id=f"{name}: {panel['title']}")
    for name, board in BOARDS.items()
    for panel in panels(board)
]


def test_the_json_is_what_the_code_says():
    assert [path.name for path, _ in stale()] == []
    assert set(BOARDS) == {"overview", "targets", "limits", "capacity", "engines"}


def lacking(part, whole, where="") -> list[str]:
    """Where ``whole`` lacks something of ``part`` or has something else."""
    if isinstance(part, dict) and isinstance(whole, dict):
        pairs = [(part[key], whole.get(key), f"{where}/{key}") for key in part]
    elif isinstance(part, list) and isinstance(whole, list) and len(part) == len(whole):
        pairs = [
            (one, other, f"{where}/{at}")
            for at, (one, other) in enumerate(zip(part, whole, strict=True))
        ]
    else:
        return [] if part == whole else [where]
    return [found for pair in pairs for found in lacking(*pair)]


@pytest.mark.parametrize("name", BOARDS)
def test_grafanas_schema_knows_all_of_it(name):
    """Its own model of a dashboard reads the file and writes it again with nothing lost."""
    plugins.register_default_plugins()
    read = Dashboard.from_json(BOARDS[name])
    assert lacking(BOARDS[name], json.loads(json.dumps(read, cls=JSONEncoder))) == []


@pytest.mark.parametrize(("name", "panel"), PANELS)
def test_a_panel_says_what_it_shows(name, panel):
    defaults = panel["fieldConfig"]["defaults"]
    unit = defaults.get("unit") or panel["options"]["yAxis"]["unit"]
    assert unit
    assert panel["title"]
    assert len(panel["description"]) > 15
    assert panel["datasource"]["uid"] == "${datasource}"
    variables = {variable["name"] for variable in BOARDS[name]["templating"]["list"]}
    for target in panel["targets"]:
        used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
        assert used <= variables
        assert "instance" in used


@pytest.mark.parametrize(("name", "panel"), PANELS)
def test_counters_are_read_as_rates_and_quantiles_from_summed_buckets(name, panel):
    for target in panel["targets"]:
        expr = target["expr"]
        assert "avg" not in expr
        for counted in re.finditer(r"\b[\w:]+_(total|bucket|count|sum)\{", expr):
            before = expr[: counted.start()]
            assert before.endswith(("rate(", "increase(")), expr
        assert re.findall(r"\[[^]]*\]", expr) in ([], ["[$__rate_interval]"] * expr.count("["))
        for inner in expr.split("histogram_quantile(")[1:]:
            assert re.match(r"0\.\d+, sum by \(le(,[\w, ]+)?\) \(rate\(", inner), expr


@pytest.mark.parametrize("name", BOARDS)
def test_panels_do_not_overlap(name):
    taken = set()
    for panel in BOARDS[name]["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_what_compose_mounts_is_there():
    compose = yaml.safe_load((FOLDER / "compose.yml").read_text())
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (FOLDER / source).is_dir()
    provider = yaml.safe_load((FOLDER / "provisioning/dashboards/nenya.yml").read_text())
    mounted = compose["services"]["grafana"]["volumes"]
    assert f"./json:{provider['providers'][0]['options']['path']}:ro" in mounted
