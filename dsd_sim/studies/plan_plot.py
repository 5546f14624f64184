"""The plot (PNG) of a plan: cost and energy of each candidate over its goodput.

Import it only to draw: loading matplotlib takes longer than running a small plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsd_sim.studies.plan import Goal, PlanRow

AXES = {Goal.COST: "cost per million tokens", Goal.ENERGY: "energy, J per token"}
FAINT = 0.35  # opacity of a dominated candidate


def plot_plan(name: str, rows: Sequence[PlanRow], folder: Path) -> Path:
    """One row of plots per class of devices. Candidates without goodput are left out."""
    devices = list(dict.fromkeys(row.device for row in rows))
    figure = Figure(figsize=(13, 1 + 4 * len(devices)), layout="constrained")
    places = figure.subplots(len(devices), len(AXES), squeeze=False)
    for line, device in zip(places, devices, strict=True):
        own = [row for row in rows if row.device == device and row.goodput > 0]
        for place, goal in zip(line, AXES, strict=True):
            _draw(place, own, goal)
        line[0].set_title(device, fontsize="medium")
        if own:
            line[-1].legend(fontsize="small")
    figure.suptitle(f"{name}: numbers are windows of candidates that are not dominated; stars are the best ones")
    path = folder / "plan.png"
    figure.savefig(path, dpi=110)
    return path


def _draw(place: Axes, rows: Sequence[PlanRow], goal: Goal) -> None:
    drafts = list(dict.fromkeys((row.draft, row.quantisation) for row in rows))
    for number, draft in enumerate(drafts):
        for row in rows:
            if (row.draft, row.quantisation) == draft:
                _draw_candidate(place, row, goal, f"C{number % 10}")
        place.plot([], [], "o", color=f"C{number % 10}", label=" ".join(draft).strip() or "cloud alone")
    place.set_xlabel("goodput of a session, tokens/s")
    place.set_ylabel(AXES[goal])
    if rows and all(_loss(row, goal) > 0 for row in rows):
        place.set_yscale("log")
        for axis_formatter in (place.yaxis.set_major_formatter, place.yaxis.set_minor_formatter):
            axis_formatter("{x:g}")
    place.grid(alpha=0.3)


def _draw_candidate(place: Axes, row: PlanRow, goal: Goal, color: str) -> None:
    at = row.session_goodput, _loss(row, goal)
    is_best = {Goal.GOODPUT, goal} & set(row.best_for)
    marker, size, alpha = "*" if is_best else "o", 13 if is_best else 4, FAINT if row.is_dominated else 1.0
    place.plot(*at, color=color, marker=marker, markersize=size, alpha=alpha)
    if not row.is_dominated:
        place.annotate(str(row.window), at, xytext=(4, 4), textcoords="offset points", fontsize="small")


def _loss(row: PlanRow, goal: Goal) -> float:
    return row.cost if goal == Goal.COST else row.energy
