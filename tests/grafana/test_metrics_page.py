"""docs/metrics.md lists what there is, and nothing else."""

from __future__ import annotations

import re

from router import Router
from router.config.reader import embedded
from router.metrics import Metrics
from tests.grafana.prometheus import FOLDER

ROW = re.compile(r"\| `([\w:]+)` \| (counter|gauge|histogram) \|([\w, ]*)\| (.+) \| `(.+)` \|")
PAGE = (FOLDER.parent / "docs" / "metrics.md").read_text()
ROWS = [ROW.fullmatch(line) for line in PAGE.splitlines() if line.startswith("| `")]


def families():
    router = Router(embedded())
    return [taken.family for taken in Metrics(router.stats)._take(router.stats())]


def test_every_row_is_one():
    assert len(ROWS) > 40
    assert all(ROWS)


def test_names_types_and_labels_agree_both_ways():
    told = {row[1]: (row[2], tuple(filter(None, row[3].strip().split(", ")))) for row in ROWS}
    assert len(told) == len(ROWS)
    assert told == {one.full_name: (one.kind, one.label_names) for one in families()}


def test_each_is_explained_and_its_example_asks_for_it():
    for row in ROWS:
        assert row[4].strip()
        assert row[1] in row[5]


def test_names_are_as_prometheus_wants_them():
    for one in families():
        assert not one.name.endswith(("_total", "_count", "_sum", "_bucket"))
        assert one.documentation
        assert not one.documentation.endswith(".")
