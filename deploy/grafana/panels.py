"""What a dashboard shows: rows of panels, and the PromQL behind each.

Invariant: an expression reads metrics of docs/metrics.md only, and returns data on a system under load. Nothing here
needs Grafana: tests and pictures read the same panels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RATE = "[$__rate_interval]"  # Grafana's: at least four scrapes
TOKENS_PER_S = "suffix: tokens/s"


@dataclass(frozen=True, slots=True)
class Query:
    """legend: of each series, with its labels as {{label}}."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """unit: Grafana's name of it. width: of 24. limit: where the line turns red."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat"] = "timeseries"
    width: int = 8
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """name: of its file, and behind `dsd-` its id."""

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> list[Panel]:
        return [panel for row in self.rows for panel in row.panels]


def panel(title: str, description: str, unit: str, expr: str, legend: str = "{{instance}}") -> Panel:
    """A panel with one query."""
    return Panel(title, description, unit, (Query(expr, legend),))


def stat(title: str, description: str, unit: str, expr: str, legend: str = "", limit: float | None = None) -> Panel:
    """A panel that shows the newest value as a number."""
    return Panel(title, description, unit, (Query(expr, legend),), "stat", 4, limit)


def rate(metric: str, by: str = "") -> str:
    """Sum of the increases per second."""
    return f"sum{f' by ({by}) ' if by else ''}(rate({metric}{RATE}))"


def share(part: str, whole: str, by: str = "") -> str:
    """The part's rate / the whole's rate."""
    return f"{rate(part, by)} / {rate(whole, by)}"


def mean(histogram: str, by: str = "") -> str:
    """Mean of what a histogram has observed lately."""
    return share(f"{histogram}_sum", f"{histogram}_count", by)


def quantiles(title: str, description: str, histogram: str, limit: float | None = None) -> Panel:
    """p50, p90 and p99 over all instances, in seconds."""
    queries = tuple(
        Query(f"histogram_quantile({q}, {rate(f'{histogram}_bucket', 'le')})", f"p{q * 100:.0f}")
        for q in (0.5, 0.9, 0.99)
    )
    return Panel(title, description, "s", queries, limit=limit)
