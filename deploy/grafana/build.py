"""Dashboards as Grafana's JSON, built with Grafana's own library.

Invariant: the JSON depends on the panels alone. Ids follow from names, so an import replaces the older version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueGraphMode, LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Threshold, ThresholdsMode

from deploy.grafana.panels import Dashboard, Panel

SOURCE = DataSourceRef("prometheus", "$datasource")
STAT_HEIGHT, HEIGHT = 4, 8
GREEN, RED = "green", "red"


def to_json(shown: Dashboard) -> str:
    """The text of a dashboard's file."""
    made = dashboard.Dashboard(shown.title).uid(f"dsd-{shown.name}").description(shown.description).tags(["dsd"])
    made = made.readonly().refresh("15s").time("now-30m", "now").timezone("browser")
    made = made.with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    for row in shown.rows:
        made = made.with_row(dashboard.Row(row.title))
        for each in row.panels:
            made = made.with_panel(_panel(each))
    encoder = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False)
    text: str = encoder.encode(made.build())
    return f"{text}\n"


def _panel(shown: Panel) -> Any:
    is_stat = shown.kind == "stat"
    builder: Callable[[], Any] = stat.Panel if is_stat else timeseries.Panel
    made = builder().title(shown.title).description(shown.description).unit(shown.unit).datasource(SOURCE)
    made = made.span(shown.width).height(STAT_HEIGHT if is_stat else HEIGHT).thresholds(_thresholds(shown.limit))
    for index, query in enumerate(shown.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + index))
        made = made.with_target(target.range())
    if is_stat:
        return made.graph_mode(BigValueGraphMode.AREA)
    legend = common.VizLegendOptions().show_legend(True).placement(LegendPlacement.BOTTOM)
    return made.min(0).fill_opacity(10).legend(legend.display_mode(LegendDisplayMode.LIST))


def _thresholds(limit: float | None) -> Any:
    steps = [Threshold(None, GREEN)] + ([] if limit is None else [Threshold(limit, RED)])
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
