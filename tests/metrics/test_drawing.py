"""Pictures of dashboards: numbers with their units, legends, and a panel for each that has lines."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import pytest

from deploy.grafana.every import DASHBOARDS
from tests.metrics.drawing import Line, draw, extent, figure_of, legend, told


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.534, "percentunit", "53%"),
        (0.0021, "s", "2.1 ms"),
        (2.5, "s", "2.5 s"),
        (3 << 20, "bytes", "3 MiB"),
        (4.0, "suffix: tokens/s", "4 tokens/s"),
        (1234.4, "none", "1234"),
    ],
)
def test_a_value_is_told_with_its_unit(value: float, unit: str, text: str) -> None:
    assert told(value, unit) == text


def test_a_legend_has_the_labels_of_its_series() -> None:
    labels = {"instance": "drafter-0", "verifier": "cloud"}
    assert legend("{{instance}} → {{verifier}}{{absent}}", labels) == "drafter-0 → cloud"


def test_every_dashboard_can_be_drawn_also_where_a_panel_has_no_data(tmp_path: Path) -> None:
    line = Line("verifier-0", [0.0, 1.0, 2.0], [1.0, math.nan, 2.0])
    for board in DASHBOARDS:
        draw(board, [[line] if number % 2 else [] for number in range(len(board.panels))], tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_no_label_lies_outside_its_picture_or_over_another_panel() -> None:
    for board in DASHBOARDS:
        lines = [Line(f"a long label of the series {number}", [0.0, 175.0], [0.0, 149.0]) for number in range(8)]
        figure = figure_of(board, [lines for _ in board.panels])
        boxes = [extent(axes, figure.canvas) for axes in figure.axes]
        assert all(box.x0 > -1e-3 and box.x1 < 1.001 and box.y0 > -1e-3 and box.y1 < 1.001 for box in boxes)
        overlaps = [(a, b) for a, b in combinations([box.padded(-1e-3) for box in boxes], 2) if a.overlaps(b)]
        assert overlaps == []
