"""promtool's unit tests: each alert fires on its event within the time that docs/runbooks.md states, names what is
concerned, fires alone and not before its `for` has passed; what comes close to an event fires nothing."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.metrics.events import CALM_MIN, EVENTS, HARMLESS, HEALTHY, Changes, Series
from tests.metrics.reading import ALERTS, Alert, alerts

AFTER_MIN, STEP_S = 35, 15
EVENT_S, END_S = CALM_MIN * 60, (CALM_MIN + AFTER_MIN) * 60
FIRED = f'count by (alertname) (count_over_time(ALERTS{{alertstate="firing"}}[{END_S}s]))'


def values(series: Series) -> str:
    """All samples, in promtool's notation."""
    samples, told = [series(number * STEP_S / 60 - CALM_MIN) for number in range(END_S // STEP_S + 1)], []
    for before, sample in zip([None, *samples], samples, strict=False):
        told.append(f"{sample:g}" if sample is not None else "_" if before is None else "stale")
    return " ".join(told)


def firing(name: str, *labels: str) -> str:
    return f'count by ({", ".join(labels)}) (ALERTS{{alertname="{name}",alertstate="firing"}})'


def expected(expr: str, at_s: float, *labels: dict[str, str]) -> dict[str, Any]:
    """What promtool shall find: a series of value 1 for each set of labels."""
    told = [", ".join(f'{name}="{value}"' for name, value in each.items()) for each in labels]
    samples = [{"labels": f"{{{each}}}", "value": 1} for each in told]
    return {"expr": expr, "eval_time": f"{int(at_s)}s", "exp_samples": samples}


def check(promtool: str, folder: Path, changes: Changes, *checks: dict[str, Any]) -> None:
    file, series = folder / "test.yaml", HEALTHY | changes
    inputs = [{"series": name, "values": values(each)} for name, each in series.items()]
    test = {"interval": f"{STEP_S}s", "input_series": inputs, "promql_expr_test": list(checks)}
    rules = {"rule_files": [str(ALERTS)], "evaluation_interval": f"{STEP_S}s", "tests": [test]}
    file.write_text(yaml.safe_dump(rules, width=1 << 20), encoding="utf-8")
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_an_event() -> None:
    assert set(EVENTS) == {alert.name for alert in alerts()}


def test_the_rules_are_sound(promtool: str) -> None:
    subprocess.run([promtool, "check", "rules", "--lint-fatal", str(ALERTS)], check=True)


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_an_alert_fires_for_its_event_alone_within_its_time_and_not_before(
    promtool: str, tmp_path: Path, alert: Alert
) -> None:
    event = EVENTS[alert.name]
    check(
        promtool,
        tmp_path,
        event.changes,
        expected(firing(alert.name), EVENT_S - STEP_S),
        expected(firing(alert.name), EVENT_S + alert.for_s - STEP_S),
        expected(firing(alert.name, *event.labels), EVENT_S + alert.within_s, event.labels),
        expected(FIRED, END_S, {"alertname": alert.name}),
    )


@pytest.mark.parametrize("what", HARMLESS)
def test_no_alert_fires_where(promtool: str, tmp_path: Path, what: str) -> None:
    check(promtool, tmp_path, HARMLESS[what], expected(FIRED, END_S))
