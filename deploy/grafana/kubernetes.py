"""deploy/alerts.yaml as a resource of the Prometheus operator.

Invariant: the groups are those of the file, word for word.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy" / "alerts.yaml"
RULE_FILE = ROOT / "k8s" / "components" / "service-monitor" / "prometheus-rule.yaml"
HEAD = """\
# Generated from deploy/alerts.yaml: python -m deploy.grafana
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: dsd
  namespace: dsd
spec:
"""


def as_prometheus_rule() -> str:
    """The text of RULE_FILE."""
    text = ALERTS.read_text(encoding="utf-8")
    return HEAD + indent(text[text.index("groups:") :], "  ")
