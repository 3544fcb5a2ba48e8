"""Grafana's JSON of the dashboards in `grafana.dashboards`.

    python -m grafana.build          write grafana/json/*.json
    python -m grafana.build --check  say which of them are out of date; 1 if any is

The shape is Grafana's published schema (dashboards v1), by its own Foundation SDK.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from grafana.dashboards import DASHBOARDS, Dashboard, Kind, Panel

FOLDER = Path(__file__).parent / "json"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = 8
"""Rows of Grafana's grid that a picture takes; a single figure takes half."""
LABELS = {
    "model": "nenya_requests_total",
    "target": "nenya_target_state",
    "engine": "nenya_engine_state",
    "instance": "nenya_build_info",
}
"""Where a variable's values are read."""


def built(board: Dashboard) -> str:
    """The JSON of one dashboard."""
    page = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["nenya"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(dashboard.DashboardLink("Nenya").tags(["nenya"]).as_dropdown(True).keep_time(True))
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
    )
    for name in ("instance", *board.variables):
        page.with_variable(_variable(name))
    for row in board.rows:
        page.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            page.with_panel(_panel(panel))
    return json.dumps(page.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _variable(name: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query(f"label_values({LABELS[name]}, {name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _panel(panel: Panel) -> Any:
    made = MAKERS[panel.kind](panel)
    made.title(panel.title).description(panel.description).datasource(SOURCE)
    made.unit(panel.unit).span(panel.width).height(HEIGHT // 2 if panel.kind == "stat" else HEIGHT)
    for query, ref in zip(panel.queries, "ABCDEF", strict=False):
        asked = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(ref)
        if panel.kind == "stat":
            asked.instant()
        elif panel.kind == "heat":
            asked.format(PromQueryFormat.HEATMAP)
        made.with_target(asked)
    if panel.bound is not None:
        steps = [Threshold(color="green"), Threshold(value=panel.bound, color="red")]
        made.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    return made


def _lines(panel: Panel) -> timeseries.Panel:
    several = bool(panel.queries[0].legend)
    return (
        timeseries.Panel()
        .min(0)
        .line_width(1)
        .fill_opacity(10)
        .show_points(shapes.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(several)
            .display_mode(shapes.LegendDisplayMode.LIST)
            .placement(shapes.LegendPlacement.BOTTOM)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(shapes.TooltipDisplayMode.MULTI)
            .sort(shapes.SortOrder.DESCENDING)
        )
    )


def _bars(panel: Panel) -> timeseries.Panel:
    return (
        _lines(panel)
        .draw_style(shapes.GraphDrawStyle.BARS)
        .fill_opacity(70)
        .stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL))
    )


def _stat(panel: Panel) -> stat.Panel:
    del panel
    return (
        stat.Panel()
        .graph_mode(shapes.BigValueGraphMode.NONE)
        .color_mode(shapes.BigValueColorMode.VALUE)
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .no_value("none")
    )


def _states(panel: Panel) -> statetimeline.Panel:
    del panel
    return statetimeline.Panel().row_height(0.8).merge_values(True)


def _heat(panel: Panel) -> heatmap.Panel:
    return heatmap.Panel().y_axis(heatmap.YAxisConfig().unit(panel.unit))


MAKERS: Mapping[Kind, Callable[[Panel], Any]] = {
    "lines": _lines,
    "bars": _bars,
    "stat": _stat,
    "states": _states,
    "heat": _heat,
}


def stale() -> Iterator[tuple[Path, str]]:
    """Files that don't say what the code does, and what they should say."""
    for board in DASHBOARDS:
        path = FOLDER / f"{board.uid.removeprefix('nenya-')}.json"
        text = built(board)
        if not path.is_file() or path.read_text() != text:
            yield path, text


def main(arguments: list[str]) -> int:
    """Write them, or check."""
    check = "--check" in arguments
    late = list(stale())
    for path, text in late:
        print(f"{'out of date' if check else 'wrote'}: {path.name}")
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    return int(check and bool(late))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
