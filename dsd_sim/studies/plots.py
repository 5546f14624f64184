"""Plots (PNG) of sweeps, comparisons and single runs.

Import it only to draw: loading matplotlib takes longer than a small run. Figures are made without pyplot, so there is
no global state and no window.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dsd_sim.engine.world import PASS, STEER, STEP, World
from dsd_sim.scenario.scenario import Scenario
from dsd_sim.studies.compare import ComparisonFinding, ComparisonPlan, of_variant
from dsd_sim.studies.report import figure_of
from dsd_sim.studies.sweep import SEED, Axis, Capacity, Group, SweepOutcome, SweepPlan, groups_of
from dsd_sim.studies.tables import brief, label_capacity, name_of
from dsd_sim.studies.trace import cut_ms, log_of

Floats: TypeAlias = NDArray[np.float64]

STYLES = ("-", "--")  # of the figures of a panel
MARKERS = "osD^vPX*"  # of the lines of a plot, which may lie on each other
LEGEND_WIDTH = 160  # characters in a line of the legend
LEGEND_COLUMNS = 4
ROW = 0.6  # height of a row of dots
NUM_TIMES = 300  # points of a plot over time
MOST_LINES = 8  # in a plot; with more, windows are drawn as quantiles, and sweeps in several pictures


PANELS = {  # figures by title, one picture of six plots
    "TTFT, ms: p50 and, dashed, p90": ("ttft_ms.p50", "ttft_ms.p90"),
    "TPOT, ms: p50 and, dashed, p90": ("tpot_ms.p50", "tpot_ms.p90"),
    "goodput, tokens/s": ("goodput",),
    "acceptance": ("acceptance",),
    "utilisation of verifiers": ("verifier_utilisation",),
    "utilisation of drafters": ("drafter_utilisation",),
}


AXES = {  # names of keys that are often varied
    "rtt_ms": "round trip, ms",
    "rate_per_s": "requests per second",
    "mean_per_s": "requests per second, mean",
    "num_clients": "clients",
    "window": "window, tokens",
    "chunk": "chunk, tokens",
    "jitter_ms": "jitter, ms",
    "step_ms": "draft step, ms",
    "base_ms": "verify pass, ms",
}
WORDS = {  # for settings that are true or false
    ("drafting", False): "cloud only",
    ("stop_and_wait", True): "stop-and-wait",
    ("free_run", False): "no free run",
    ("colocated", True): "co-located",
}


def label_of(settings: Mapping[str, Any]) -> str:
    """Settings in the words of the glossary, for a legend."""
    lasts = {key.rpartition(".")[2]: value for key, value in settings.items()}
    words = [word for (name, value), word in WORDS.items() if lasts.get(name) is value]
    if "chunk" in lasts and not {"stop-and-wait", "cloud only"} & set(words):
        words.insert(0, "sliding")
    others = {
        key: value
        for key, value in settings.items()
        if not isinstance(value, bool) or (key.rpartition(".")[2], value) not in WORDS  # others may have no hash
    }
    return ", ".join(filter(None, (*words, brief(others))))


def axis_of(key: str) -> str:
    return AXES.get(key.rpartition(".")[2], key)


def _saved(figure: Figure, folder: Path, name: str) -> Path:
    path = folder / f"{re.sub(r'[^a-zA-Z0-9._-]', '_', name)}.png"
    figure.savefig(path, dpi=110)
    return path


# --- sweeps -----------------------------------------------------------------------------------------------------------


def plot_sweep(plan: SweepPlan, outcomes: Sequence[SweepOutcome], folder: Path) -> list[Path]:
    """One picture for the first key of each axis that is long enough; with too many lines, one for each value of the
    first other axis."""
    axes = [axis for axis in plan.axes if axis.keys and axis.keys[0] != SEED and axis.is_long(axis.keys[0])]
    return [_plot_over(axis, plan, part, folder) for axis in axes for part in _parts(axis, plan, outcomes)]


def _parts(axis: Axis, plan: SweepPlan, outcomes: Sequence[SweepOutcome]) -> list[Group]:
    """The outcomes of each picture."""
    if len(groups_of(outcomes, (*axis.keys, SEED))) <= MOST_LINES:
        return [Group({}, list(outcomes))]
    others = [each for each in plan.axes if each is not axis]
    return groups_of(outcomes, [*axis.keys, SEED, *(key for each in others[1:] for key in each.keys)])


def _plot_over(axis: Axis, plan: SweepPlan, part: Group, folder: Path) -> Path:
    """One line per combination of the other keys; means over seeds."""
    key, lines = axis.keys[0], groups_of(part.outcomes, (*axis.keys, *part.settings, SEED))
    labels = [label_of(line.settings) for line in lines]
    columns = max(1, LEGEND_WIDTH // max(map(len, (*labels, " "))))
    figure = Figure(figsize=(13, 7.5 + 0.25 * -(-len(lines) // columns)), layout="constrained")
    for place, (title, figures) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        for number, (line, label) in enumerate(zip(lines, labels, strict=True)):
            _draw(place, figures, line, label, axis, number)
        place.set_title(title, fontsize="medium")
        place.set_xlabel(axis_of(key))
        _scale(place)
        place.grid(alpha=0.3)
    if labels != [""]:
        handles = figure.axes[0].get_legend_handles_labels()[0]
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small")
    about = brief(part.settings)
    figure.suptitle(": ".join(filter(None, (plan.scenario, label_of(part.settings)))))
    return _saved(figure, folder, "-".join(filter(None, (f"by-{key}", about))))


def _scale(place: Axes) -> None:
    """Starts the y axis at 0, or makes it logarithmic if values differ a lot, as in queues."""
    low, high = place.dataLim.ymin, place.dataLim.ymax
    if low > 0 and high > 50 * low:
        place.set_yscale("log")
    else:
        place.set_ylim(0, 1.08 * high if high > 0 else 1)


def _draw(place: Axes, figures: Sequence[str], line: Group, label: str, axis: Axis, number: int) -> None:
    """One line for each figure: the mean over seeds, and in a shade the lowest and highest seed."""
    others = [key for key in axis.keys if key != axis.keys[0]]
    points = groups_of(line.outcomes, (*others, *line.settings, SEED))
    points.sort(key=lambda point: point.settings[axis.keys[0]])
    xs = [point.settings[axis.keys[0]] for point in points]
    for name, style in zip(figures, STYLES, strict=False):
        ys = [point.mean(name) for point in points]
        color, marker = f"C{number % 10}", MARKERS[number % len(MARKERS)]
        shown = label if style == STYLES[0] else None
        place.plot(xs, ys, style, color=color, marker=marker, markersize=4, alpha=0.85, label=shown)
        if style == STYLES[0]:
            seeds = [[figure_of(outcome.report, name) for outcome in point.outcomes] for point in points]
            lows, highs = [min(each) for each in seeds], [max(each) for each in seeds]
            place.fill_between(xs, lows, highs, color=color, alpha=0.15, linewidth=0)


def plot_capacities(capacities: Sequence[Capacity], folder: Path) -> Path:
    """One bar per combination of the keys other than the load."""
    figure = Figure(figsize=(9, 1.5 + 0.35 * len(capacities)), layout="constrained")
    place = figure.subplots()
    bars = place.barh(range(len(capacities)), [capacity.load for capacity in capacities], color="C0")
    place.bar_label(bars, [label_capacity(capacity) for capacity in capacities], padding=3)
    place.set_yticks(range(len(capacities)), [label_of(capacity.settings) or "all" for capacity in capacities])
    place.invert_yaxis()
    place.margins(x=0.15)
    place.set_xlabel(axis_of(capacities[0].key))
    place.set_title("capacity: the highest load with p90 of TTFT and TPOT within the objective", fontsize="medium")
    return _saved(figure, folder, "capacity")


# --- comparisons ------------------------------------------------------------------------------------------------------


def plot_comparison(plan: ComparisonPlan, findings: Sequence[ComparisonFinding], folder: Path) -> list[Path]:
    """One picture per figure: ratios to the baseline as dots, published ratios as crosses."""
    return [_plot_ratios(figure, plan, findings, folder) for figure in plan.comparison.figures]


def _plot_ratios(name: str, plan: ComparisonPlan, findings: Sequence[ComparisonFinding], folder: Path) -> Path:
    """One row per variant, with a dot for each scenario."""
    scenarios, variants = plan.scenarios, [variant.name for variant in plan.comparison.variant]
    figure = Figure(figsize=(10, 2.2 + 0.34 * len(variants) + 0.07 * len(scenarios)), layout="constrained")
    place = figure.subplots()
    for number, scenario in enumerate(scenarios):
        found = [of_variant(findings, scenario, variant) for variant in variants]
        rows = np.arange(len(variants)) + ROW * ((number + 0.5) / len(scenarios) - 0.5)
        color, marker = f"C{number % 10}", MARKERS[number // 10 % len(MARKERS)]
        ratios = [each.ratios[name] or 0.0 for each in found]
        place.scatter(ratios, rows, s=28, color=color, marker=marker, alpha=0.8, label=scenario)
        reported = [(each.reported[name], row) for row, each in zip(rows, found, strict=True) if name in each.reported]
        if reported:
            place.plot(*zip(*reported, strict=True), "kx", markersize=9, label=f"{scenario}, as reported")
    place.axvline(1.0, color="black", linewidth=0.8)
    place.set_yticks(range(len(variants)), variants)
    place.invert_yaxis()
    place.set_xlabel(f"× as much as {plan.comparison.baseline}")
    place.set_title(name_of(name), fontsize="medium")
    place.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize="small")
    return _saved(figure, folder, f"compare-{name}")


# --- one run ----------------------------------------------------------------------------------------------------------


def plot_run(scenario: Scenario, world: World, folder: Path) -> list[Path]:
    """Windows and utilisation over the time of the log, and the distributions of TTFT and TPOT."""
    end_ms = cut_ms(world) or float(world.requests["done_ms"].max())
    figure = Figure(figsize=(10, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    _draw_windows(above, scenario, world, end_ms)
    _draw_utilisation(below, world, end_ms)
    below.set_xlabel("virtual time, s" + ("" if cut_ms(world) is None else " (the log goes no further)"))
    figure.suptitle(f"{scenario.name}, seed {scenario.seed}")
    return [_saved(figure, folder, "over-time"), _plot_times(scenario, world, folder)]


def _draw_windows(place: Axes, scenario: Scenario, world: World, end_ms: float) -> None:
    times, start = np.linspace(0, end_ms, NUM_TIMES), scenario.policies.window
    windows = windows_over(log_of(world), times, start)
    if not len(windows):
        place.plot(times / 1000, np.full(NUM_TIMES, start), label="all pairs, never steered")
    elif len(windows) <= MOST_LINES:
        for number, line in enumerate(windows):
            place.plot(times / 1000, line, drawstyle="steps-post", linewidth=1, label=f"pair {number + 1}")
    else:
        low, middle, high = np.quantile(windows, (0.1, 0.5, 0.9), axis=0)
        place.fill_between(times / 1000, low, high, alpha=0.25, label="p10 to p90")
        place.plot(times / 1000, middle, label="median")
    if len(windows):
        place.set_title(f"of the {len(windows):,} pairs that were steered", fontsize="medium")
    if place.get_legend_handles_labels()[1]:
        place.legend(fontsize="small")
    place.set_ylabel("window")
    place.set_ylim(bottom=0)
    place.grid(alpha=0.3)


def windows_over(log: NDArray[Any], times: Floats, start: int) -> NDArray[np.int64]:
    """The window of each steered pair at each time, [pairs, times]; `start` before its first decision."""
    steers = log[log["kind"] == STEER]
    order = np.argsort(steers["who"], kind="stable")
    pairs, windows, at_ms = steers["who"][order], steers["num"][order], steers["end"][order]
    found = np.empty((len(np.unique(pairs)), len(times)), np.int64)
    begins = np.flatnonzero(np.diff(pairs, prepend=-1))
    ends = np.append(begins[1:], len(pairs))[: len(begins)]
    for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        place = np.searchsorted(at_ms[begin:end], times, side="right")
        found[row] = np.concatenate(([start], windows[begin:end]))[place]
    return found


def _draw_utilisation(place: Axes, world: World, end_ms: float) -> None:
    log, edges = log_of(world), np.linspace(0, end_ms, NUM_TIMES // 3)
    for kind, num, label in ((PASS, len(world.nodes), "verifiers"), (STEP, len(world.devices), "drafters")):
        busy = np.diff(busy_until(edges, log[log["kind"] == kind]))
        place.plot((edges[1:] + edges[:-1]) / 2000, busy / np.diff(edges) / num, label=label)
    place.set_ylabel("utilisation")
    place.set_ylim(0, 1.05)
    place.grid(alpha=0.3)
    place.legend(fontsize="small")


def busy_until(times: Floats, entries: NDArray[Any]) -> Floats:
    """Total duration of all entries before each of the times, [times]."""

    def since(points: Floats) -> Floats:  # sum of (time - point) over the points before each time
        points = np.sort(points)
        sums = np.concatenate(([0.0], np.cumsum(points)))
        num = np.searchsorted(points, times)
        passed: Floats = num * times - sums[num]
        return passed

    return since(entries["start"]) - since(entries["end"])


def _plot_times(scenario: Scenario, world: World, folder: Path) -> Path:
    requests = world.requests
    ttft = requests["first_ms"] - requests["arrival_ms"]
    tpot = (requests["done_ms"] - requests["first_ms"]) / np.maximum(requests["tokens"] - 1, 1)
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    objective = scenario.objective
    _draw_distribution(left, "TTFT, ms", np.asarray(ttft), objective.ttft_ms)
    _draw_distribution(right, "TPOT, ms", np.asarray(tpot[requests["tokens"] > 1]), objective.tpot_ms)
    left.set_ylabel("share of requests up to here")
    figure.suptitle(f"{scenario.name}, seed {scenario.seed}")
    return _saved(figure, folder, "times")


def _draw_distribution(place: Axes, name: str, values: Floats, objective: float) -> None:
    place.plot(np.sort(values), np.arange(1, len(values) + 1) / max(len(values), 1), drawstyle="steps-post")
    place.axvline(objective, color="black", linestyle=":", label="objective")
    place.set_xlabel(name)
    place.set_ylim(0, 1)
    place.grid(alpha=0.3)
    place.legend(fontsize="small")
