"""Writes the dashboards and the alerts of Kubernetes: python -m deploy.grafana."""

from __future__ import annotations

from pathlib import Path

from deploy.grafana.build import to_json
from deploy.grafana.every import DASHBOARDS
from deploy.grafana.kubernetes import RULE_FILE, as_prometheus_rule

FOLDER = Path(__file__).parent


def main() -> None:
    for each in DASHBOARDS:
        (FOLDER / f"{each.name}.json").write_text(to_json(each), encoding="utf-8")
    RULE_FILE.write_text(as_prometheus_rule(), encoding="utf-8")


if __name__ == "__main__":
    main()
