"""Dashboards and alerts say what they are made from, name metrics that exist, and have a runbook each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from deploy.grafana.every import DASHBOARDS
from deploy.grafana.kubernetes import RULE_FILE, as_prometheus_rule
from deploy.grafana.panels import Dashboard
from tests.metrics.drawing import TITLES, titles
from tests.metrics.reading import ROOT, RUNBOOKS, alerts, metrics_in, rules
from tests.test_docs import registered_metrics

EVERY = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.name)
OF_PROCESSES = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"}


@EVERY
def test_the_file_of_a_dashboard_is_what_its_panels_make(dashboard: Dashboard) -> None:
    build = pytest.importorskip("deploy.grafana.build", reason="grafana-foundation-sdk is not installed")
    file = ROOT / "deploy" / "grafana" / f"{dashboard.name}.json"
    assert file.read_text(encoding="utf-8") == build.to_json(dashboard), "run python -m deploy.grafana"


@EVERY
def test_a_dashboard_fits_its_grid_and_asks_the_chosen_source(dashboard: Dashboard) -> None:
    told = json.loads((ROOT / "deploy" / "grafana" / f"{dashboard.name}.json").read_text(encoding="utf-8"))
    panels = list(flat(told["panels"]))
    assert [each["title"] for each in panels] == [each.title for each in dashboard.panels]
    places = [each["gridPos"] for each in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells)), "panels lie over each other"
    assert {each["datasource"]["uid"] for each in panels} == {"$datasource"}


def flat(panels: list[dict]) -> Iterator[dict]:
    for each in panels:
        if each["type"] != "row":
            yield each
        yield from flat(each.get("panels") or [])


def test_every_metric_that_a_panel_or_rule_names_exists() -> None:
    exprs = [query.expr for board in DASHBOARDS for panel in board.panels for query in panel.queries]
    named = set().union(*(metrics_in(expr) for expr in [*exprs, *(rule["expr"] for rule in rules())]))
    assert len(named) > 40
    assert named - set(registered_metrics()) - OF_PROCESSES == set()


def test_every_alert_has_a_runbook_and_a_stated_time() -> None:
    text = RUNBOOKS.read_text(encoding="utf-8")
    named = [alert.name for alert in alerts()]  # raises KeyError where the table lacks one
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == named
    assert re.findall(r"^\| \[(\w+)\]", text, re.MULTILINE) == named
    for rule in rules():
        if "alert" in rule:
            assert rule["annotations"]["runbook"] == f"docs/runbooks.md#{rule['alert'].lower()}"
            assert f"| [{rule['alert']}](#{rule['alert'].lower()}) | {rule['labels']['severity']} |" in text


def test_the_runbooks_say_for_each_alert_how_far_it_looks_back() -> None:
    rows = re.findall(
        r"^\| (Dsd[\w, ]+) \| (none|\d+ (?:min|h)) \| .+ \|$", RUNBOOKS.read_text(encoding="utf-8"), re.MULTILINE
    )
    stated = [(name, window) for names, window in rows for name in names.split(", ")]
    assert sorted(name for name, _ in stated) == sorted(alert.name for alert in alerts())
    windows = {rule["alert"]: set(re.findall(r"\[(\d+[mh])\]", rule["expr"])) for rule in rules() if "alert" in rule}
    assert {name: windows[name] or {"none"} for name, _ in stated} == {
        name: {window.replace(" min", "m").replace(" h", "h")} for name, window in stated
    }


@EVERY
def test_the_picture_of_a_dashboard_shows_its_rows_and_panels(dashboard: Dashboard) -> None:
    pictures = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    with pictures.open(ROOT / "docs" / "pictures" / f"{dashboard.name}.png") as picture:
        drawn = picture.text.get(TITLES, "").splitlines()
    assert drawn == titles(dashboard), "run python -m tests.metrics.pictures"


def test_the_operator_gets_the_same_rules() -> None:
    assert RULE_FILE.read_text(encoding="utf-8") == as_prometheus_rule(), "run python -m deploy.grafana"
