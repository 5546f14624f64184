"""What the repository says of metrics: rules, their stated times, and metrics that expressions name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy" / "alerts.yaml"
RUNBOOKS = ROOT / "docs" / "runbooks.md"
SPEED = 10  # tests run rules so many times faster: a scrape each 1.5 s in place of each 15 s
_DURATION = re.compile(r"(?<=\[)\d+[smh](?=\])|(?<=for: )\d+[smh]\b")
_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Alert:
    name: str
    severity: str
    within_s: float  # as docs/runbooks.md states it
    for_s: float  # that its condition must hold


def alerts() -> list[Alert]:
    stated = {name: (severity, 60 * int(minutes)) for name, severity, minutes in _rows()}
    return [
        Alert(rule["alert"], rule["labels"]["severity"], stated[rule["alert"]][1], _seconds(rule.get("for", "0s")))
        for rule in rules()
        if "alert" in rule
    ]


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def _rows() -> list[tuple[str, str, str]]:
    text = RUNBOOKS.read_text(encoding="utf-8")
    return re.findall(r"^\| \[(\w+)\]\(#\w+\) \| (\w+) \| (\d+) min \|$", text, re.MULTILINE)


def faster(text: str) -> str:
    """Rules with every duration divided by SPEED."""
    return _DURATION.sub(lambda found: f"{_seconds(found[0]) // SPEED}s", text)


def _seconds(duration: str) -> int:
    return int(duration[:-1]) * _UNITS[duration[-1]]


def metrics_in(expr: str) -> set[str]:
    """Names of metrics in an expression, without the suffixes of histograms."""
    names = set(re.findall(r"\b(?:dsd|process)_\w+", expr))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
