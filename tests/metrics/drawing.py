"""Draws a dashboard from queried data, for pictures in documents: Grafana's grid, without Grafana."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from deploy.grafana.panels import Dashboard, Panel

COLUMNS, ROW_HEIGHT, STAT_HEIGHT, HEIGHT = 24, 1.2, 4.0, 8.0
CELL_IN = 0.52  # inches of a column; a unit of height is 0.3
GREEN, RED, GREY = "#3d8f46", "#c4302b", "#666666"
MAX_LEGEND, LONG = 8, 14  # series; characters of a label
TITLES = "Titles"  # key of a picture's text, which has those of its rows and panels line by line


@dataclass(frozen=True, slots=True)
class Line:
    """A series: seconds since the start, and values."""

    label: str
    times: list[float]
    values: list[float]


Drawn = list[list[Line]]  # by panel of a dashboard


@dataclass(frozen=True, slots=True)
class Place:
    """Of a panel, or of a row's title, in columns and units of height from the top left corner."""

    x: float
    y: float
    width: float
    height: float
    shown: Panel | str


def draw(board: Dashboard, lines: Drawn, path: Path) -> None:
    """Writes a PNG."""
    figure_of(board, lines).savefig(path, metadata={TITLES: "\n".join(titles(board))})


def titles(board: Dashboard) -> list[str]:
    """Of rows and panels, as they follow each other in its picture."""
    return [place.shown if isinstance(place.shown, str) else place.shown.title for place in _places(board)]


def figure_of(board: Dashboard, lines: Drawn) -> Figure:
    places = list(_places(board))
    total = max(place.y + place.height for place in places)
    panels = iter(lines)
    with mpl.rc_context({"font.size": 7, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure((COLUMNS * CELL_IN, total * 0.3), dpi=90)
        canvas = FigureCanvasAgg(figure)
        for place in places:
            box = _box(place, total)
            if isinstance(place.shown, str):
                figure.text(box.x0, box.y0 + 0.4 * box.height, place.shown, fontsize=9, weight="bold")
            elif place.shown.kind == "stat":
                _draw_stat(figure.add_axes(box.bounds), place.shown, next(panels))
            else:
                axes = figure.add_axes(box.bounds)
                _draw_lines(axes, place.shown, next(panels))
                _fit(axes, box, canvas)
    return figure


def extent(axes: Axes, canvas: FigureCanvasAgg) -> Bbox:
    """Of the axes with title, labels and legend, in parts of the figure."""
    found = axes.get_tightbbox(canvas.get_renderer())
    assert found is not None
    return found.transformed(canvas.figure.transFigure.inverted())


def legend(template: str, labels: dict[str, str]) -> str:
    """A query's legend with the labels of a series."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), template)


def told(value: float, unit: str) -> str:
    """A value with its unit, as Grafana tells it."""
    if unit == "percentunit":
        return f"{value:.0%}"
    if unit == "s":
        return f"{value:.2g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    if unit in ("reqps", "cps"):
        return f"{value:.2g}/s"
    number = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{number} {unit.removeprefix('suffix: ')}" if unit.startswith("suffix") else number


def _places(board: Dashboard) -> Iterator[Place]:
    y = 0.0
    for row in board.rows:
        yield Place(0, y, COLUMNS, ROW_HEIGHT, row.title)
        y, x, height = y + ROW_HEIGHT, 0, 0.0
        for panel in row.panels:
            height = STAT_HEIGHT if panel.kind == "stat" else HEIGHT
            if x + panel.width > COLUMNS:
                x, y = 0, y + height
            yield Place(x, y, panel.width, height, panel)
            x += panel.width
        y += height


def _box(place: Place, total: float) -> Bbox:
    """In parts of the figure."""
    gap_x, gap_y = 0.15 / COLUMNS, 0.15 / total
    left, bottom = place.x / COLUMNS + gap_x, 1 - (place.y + place.height) / total + gap_y
    return Bbox.from_bounds(left, bottom, place.width / COLUMNS - 2 * gap_x, place.height / total - 2 * gap_y)


def _fit(axes: Axes, box: Bbox, canvas: FigureCanvasAgg) -> None:
    """Shrinks the axes until their labels lie in the box."""
    around = extent(axes, canvas)
    (left, bottom), (right, top) = box.min - around.min, around.max - box.max
    axes.set_position((box.x0 + left, box.y0 + bottom, box.width - left - right, box.height - bottom - top))


def _draw_stat(axes: Axes, panel: Panel, lines: list[Line]) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    newest = [line.values[-1] for line in lines if line.values and math.isfinite(line.values[-1])]
    value = newest[0] if newest else math.nan
    colour = RED if panel.limit is not None and value >= panel.limit else GREEN
    axes.text(
        0.5, 0.45, told(value, panel.unit) if newest else "no data", color=colour, fontsize=15, ha="center", va="center"
    )
    axes.text(0.03, 0.95, panel.title, color=GREY, va="top")


def _draw_lines(axes: Axes, panel: Panel, lines: list[Line]) -> None:
    for line in lines:
        axes.plot(line.times, line.values, linewidth=1, label=line.label)
    if panel.limit is not None:
        axes.axhline(panel.limit, color=RED, linewidth=0.7, linestyle="--")
    axes.set_title(panel.title, loc="left", fontsize=8)
    values = [value for line in lines for value in line.values if math.isfinite(value)]
    highest = 1.1 * max([*values, panel.limit or 0.0]) or 1.0
    axes.set_ylim(-0.02 * highest, highest)  # a line at 0 shows
    axes.grid(axis="y", linewidth=0.3)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: told(value, panel.unit)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    if 0 < len(lines) <= MAX_LEGEND:
        columns = 2 if any(len(line.label) > LONG for line in lines) else 4
        place = {"loc": "upper left", "bbox_to_anchor": (0, -0.14), "borderaxespad": 0}
        axes.legend(ncol=columns, frameon=False, fontsize=6, columnspacing=1.2, **place)
