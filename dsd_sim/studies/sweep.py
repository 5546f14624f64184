"""Sweeps: one scenario, varied: every combination of the values of its keys, each with every seed.

Invariant: a combination differs from its scenario's file in its settings and in nothing else. Times are milliseconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Struct
from pydantic import Field

from dsd_sim.scenario.scenario import Objective, read_toml
from dsd_sim.scenario.table import BadScenario, Part
from dsd_sim.studies.cells import Cell, cell_of, part_of, settings_of, told, told_settings
from dsd_sim.studies.crossover import Crossing, Crossover, complaint_about, crossing_of
from dsd_sim.studies.report import Report, figure_of, figures_of, write_csv

LOADS = ("workload.rate_per_s", "workload.mean_per_s", "workload.num_clients")
SEED = "seed"
LEAST_LONG = 3  # values of an axis that results are plotted over

Seeds: TypeAlias = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
Values: TypeAlias = Annotated[tuple[Any, ...], Field(min_length=1)]


class Sweep(Part):
    """The table `[sweep]` of a scenario's file."""

    keys: Annotated[dict[str, Values], Field(min_length=1)]  # dotted, with an entry's number in a list, or * for all
    seeds: Seeds | None = None  # the scenario's own
    crossover: Crossover | None = None


@dataclass(frozen=True, slots=True)
class Axis:
    """What is varied together: the values of one key of the sweep, each told by all the dotted keys that it sets."""

    values: tuple[dict[str, Any], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key for value in self.values for key in value))

    def is_long(self, key: str) -> bool:
        """Whether one of the keys has enough different numbers to look at results over it."""
        found = [value.get(key) for value in self.values]
        are_numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in found)
        return are_numbers and len(set(found)) >= LEAST_LONG


@dataclass(frozen=True, slots=True)
class Point:
    """A combination."""

    settings: dict[str, Any]
    cell: Cell


@dataclass(frozen=True, slots=True)
class Plan:
    """All of them. Where there are seeds, they are the last axis."""

    scenario: str
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    crossover: Crossover | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """All that is varied."""
        return tuple(key for axis in self.axes for key in axis.keys)


class Outcome(Struct, frozen=True):
    """A combination and what it showed. `is_within`: p90 of TTFT and of TPOT keep the objective."""

    settings: dict[str, Any]
    cell: str
    is_within: bool
    report: Report


@dataclass(frozen=True, slots=True)
class Group:
    """Outcomes that differ in nothing but keys that were left out of the settings."""

    settings: dict[str, Any]
    outcomes: list[Outcome]

    def mean(self, figure: str) -> float:
        return fmean(figure_of(outcome.report, figure) for outcome in self.outcomes)


class Capacity(Struct, frozen=True):
    """The highest load that kept the objective, with every seed, and all lower ones did too; 0 where none did.

    `is_limit`: a higher one was tried, and did not.
    """

    settings: dict[str, Any]
    key: str  # of the load
    load: float
    is_limit: bool


def read_plan(path: Path) -> Plan:
    """Raises BadScenario for what can't be run, OSError for a file that can't be read."""
    content = read_toml(path)
    if "sweep" not in content:
        raise BadScenario(f"{path}: sweep: there must be a table that says what to vary")
    sweep = part_of(Sweep, content.pop("sweep"), path, "sweep")
    axes = [Axis(tuple(settings_of(key, value) for value in values)) for key, values in sweep.keys.items()]
    if sweep.seeds is not None:
        axes.append(Axis(tuple({SEED: seed} for seed in sweep.seeds)))
    for one, other in itertools.combinations(axes, 2):
        for key, again in itertools.product(one.keys, other.keys):
            if _overlap(key.split("."), again.split(".")):
                told_keys = key if key == again else f"{key}, as a part of {again},"
                raise BadScenario(f"{path}: sweep.keys: {told_keys} is varied twice")
    for axis in axes:
        if len({told_settings(value) for value in axis.values}) < len(axis.values):
            raise BadScenario(f"{path}: sweep: {' and '.join(axis.keys)} has a value twice")
    tried = [axis.values for axis in axes]
    if sweep.crossover is not None and (complaint := complaint_about(sweep.crossover, tried)):
        raise BadScenario(f"{path}: sweep.crossover.{complaint}")
    points = []
    for chosen in itertools.product(*(axis.values for axis in axes)):
        settings = {key: value for values in chosen for key, value in values.items()}
        points.append(Point(settings, cell_of(content, path, settings)))
    return Plan(points[0].cell.scenario.name, tuple(axes), tuple(points), sweep.crossover)


def _overlap(steps: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two dotted keys set the same thing, or one a part of the other."""
    return all(a == b or "*" in (a, b) for a, b in zip(steps, others, strict=False))


def outcomes_of(plan: Plan, reports: Mapping[str, Report]) -> list[Outcome]:
    """Of all points, in their order; `reports` by the keys of cells."""
    found = []
    for point in plan.points:
        report = reports[point.cell.key]
        is_within = _is_within(report, point.cell.scenario.objective)
        found.append(Outcome(point.settings, point.cell.key, is_within, report))
    return found


def _is_within(report: Report, objective: Objective) -> bool:
    return report.ttft_ms.p90 <= objective.ttft_ms and report.tpot_ms.p90 <= objective.tpot_ms


def groups_of(outcomes: Sequence[Outcome], without: Collection[str]) -> list[Group]:
    """By their settings but for the keys `without`, in the order of the first of each."""
    found: dict[str, Group] = {}
    for outcome in outcomes:
        settings = {key: value for key, value in outcome.settings.items() if key not in without}
        found.setdefault(told_settings(settings), Group(settings, [])).outcomes.append(outcome)
    return list(found.values())


def capacities_of(plan: Plan, outcomes: Sequence[Outcome]) -> list[Capacity]:
    """For each combination of what isn't the load; none where that doesn't have several values."""
    for axis in plan.axes:
        key = next((key for key in LOADS if key in axis.keys), None)
        if key is not None and axis.is_long(key):
            return [_capacity(group, key) for group in groups_of(outcomes, (*axis.keys, SEED))]
    return []


def _capacity(group: Group, key: str) -> Capacity:
    is_kept: dict[float, bool] = {}
    for outcome in group.outcomes:
        load = outcome.settings[key]
        is_kept[load] = is_kept.get(load, True) and outcome.is_within
    kept = list(itertools.takewhile(lambda load: is_kept[load], sorted(is_kept)))
    return Capacity(group.settings, key, kept[-1] if kept else 0.0, len(kept) < len(is_kept))


def crossings_of(plan: Plan, outcomes: Sequence[Outcome]) -> list[Crossing]:
    """Of each combination of what isn't the crossover's key and isn't among those to beat; means over seeds."""
    crossover = plan.crossover
    if crossover is None:
        return []
    key, figure, against = crossover.key, crossover.figure, crossover.against
    beside = {name for axis in plan.axes if set(axis.keys) & set(against) for name in axis.keys}
    lines: dict[str, list[Group]] = {}
    for group in groups_of(outcomes, (SEED,)):
        lines.setdefault(told_settings(_without(group.settings, {key})), []).append(group)
    theirs: dict[str, list[float]] = {}
    for groups in lines.values():
        if against.items() <= groups[0].settings.items():
            shared = _without(groups[0].settings, {key, *beside})
            theirs[told_settings(shared)] = [group.mean(figure) for group in _along(groups, key)]
    found = []
    for groups in lines.values():
        settings = _without(groups[0].settings, {key})
        if against.items() <= settings.items():
            continue
        along = _along(groups, key)
        beaten = theirs[told_settings(_without(settings, beside))]
        values, ours = [group.settings[key] for group in along], [group.mean(figure) for group in along]
        found.append(crossing_of(crossover, settings, values, ours, beaten))
    return found


def _without(settings: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def _along(groups: Sequence[Group], key: str) -> list[Group]:
    return sorted(groups, key=lambda group: float(group.settings[key]))


class Findings(Struct, frozen=True):
    """A sweep's JSON file."""

    scenario: str
    keys: tuple[str, ...]
    outcomes: list[Outcome]
    capacities: list[Capacity]
    crossings: list[Crossing]


def write_sweep(
    plan: Plan, outcomes: list[Outcome], capacities: list[Capacity], crossings: list[Crossing], folder: Path
) -> None:
    """Writes sweep.json and sweep.csv, a line for each combination."""
    findings = Findings(plan.scenario, plan.keys, outcomes, capacities, crossings)
    content = msgspec.json.format(msgspec.json.encode(findings), indent=1)
    (folder / "sweep.json").write_bytes(content + b"\n")
    write_csv(folder / "sweep.csv", [_row(plan, outcome) for outcome in outcomes])


def _row(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    settings = {key: told(outcome.settings[key]) if key in outcome.settings else "" for key in plan.keys}
    return {"scenario": plan.scenario} | settings | {SEED: outcome.report.seed} | figures_of(outcome.report)
