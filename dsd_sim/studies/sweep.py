"""Sweeps: one scenario with every combination of values of some keys, each with every seed.

Invariant: a combination differs from the scenario's file only in its settings.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, TypeAlias

from msgspec import Struct
from pydantic import Field

from dsd_sim.scenario.scenario import DEFAULT_SEED, parse_table, read_toml
from dsd_sim.scenario.table import BadScenario, Table
from dsd_sim.studies.cells import NUM_SEEDS, WARM_UP, Cell, cell_of, describe_settings, describe_value, settings_of
from dsd_sim.studies.crossover import Crossing, Crossover, crossing_of, is_number, problem_with
from dsd_sim.studies.report import SimReport, figure_of, figures_of, write_csv, write_json

LOADS = ("workload.rate_per_s", "workload.mean_per_s", "workload.num_clients")
SEED = "seed"
LEAST_LONG = 3  # least number of values of an axis to plot over

Seeds: TypeAlias = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
WarmUp: TypeAlias = Annotated[float, Field(ge=0, le=0.5)]  # share of the requests
Values: TypeAlias = Annotated[tuple[Any, ...], Field(min_length=1)]


class Sweep(Table):
    """The table `[sweep]` of a scenario's file."""

    keys: Annotated[dict[str, Values], Field(min_length=1)]  # dotted; an entry of a list by its number, * for all
    seeds: Seeds | None = None  # default: the scenario's own and the two after it
    warm_up: WarmUp = WARM_UP
    crossover: Crossover | None = None


@dataclass(frozen=True, slots=True)
class Axis:
    """One key of the sweep. `values`: the settings of each of its values, by dotted keys."""

    values: tuple[dict[str, Any], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key for value in self.values for key in value))

    def is_long(self, key: str) -> bool:
        """Whether the key has enough different numbers to plot over."""
        found = [value.get(key) for value in self.values]
        return all(map(is_number, found)) and len(set(found)) >= LEAST_LONG


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """A combination of settings, and its cell."""

    settings: dict[str, Any]
    cell: Cell


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """All points of a sweep. Seeds are the last axis."""

    scenario: str
    axes: tuple[Axis, ...]
    points: tuple[SweepPoint, ...]
    crossover: Crossover | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """All varied keys."""
        return tuple(key for axis in self.axes for key in axis.keys)


class SweepOutcome(Struct, frozen=True):
    """A combination and its report. `is_within`: p90 of TTFT and of TPOT are within the objective."""

    settings: dict[str, Any]
    cell: str
    is_within: bool
    report: SimReport


@dataclass(frozen=True, slots=True)
class Group:
    """Outcomes that have the same settings, except for some keys that are left out."""

    settings: dict[str, Any]
    outcomes: list[SweepOutcome]

    def mean(self, figure: str) -> float:
        return fmean(figure_of(outcome.report, figure) for outcome in self.outcomes)


class Capacity(Struct, frozen=True):
    """The highest load up to which every load, with every seed, is within the objective; 0 if none is.

    `is_limit`: a higher load was tried and is not.
    """

    settings: dict[str, Any]
    key: str  # of the load
    load: float
    is_limit: bool


def read_plan(path: Path) -> SweepPlan:
    """Raises BadScenario for a sweep that can't be run, OSError for a file that can't be read."""
    content = read_toml(path)
    if "sweep" not in content:
        raise BadScenario(f"{path}: sweep: the table with the keys to vary is missing")
    sweep = parse_table(Sweep, content.pop("sweep"), path, "sweep")
    axes = [Axis(tuple(settings_of(key, value) for value in values)) for key, values in sweep.keys.items()]
    if sweep.seeds is not None or SEED not in sweep.keys:
        axes.append(Axis(tuple({SEED: seed} for seed in seeds_of(sweep.seeds, content))))
    for one, other in itertools.combinations(axes, 2):
        for key, again in itertools.product(one.keys, other.keys):
            if _overlap(key.split("."), again.split(".")):
                twice = key if key == again else f"{key}, as a part of {again},"
                raise BadScenario(f"{path}: sweep.keys: {twice} is varied twice")
    for axis in axes:
        if len({describe_settings(value) for value in axis.values}) < len(axis.values):
            raise BadScenario(f"{path}: sweep: {' and '.join(axis.keys)} has a value twice")
    tried = [axis.values for axis in axes]
    if sweep.crossover is not None and (problem := problem_with(sweep.crossover, tried)):
        raise BadScenario(f"{path}: sweep.crossover.{problem}")
    points = []
    for chosen in itertools.product(*(axis.values for axis in axes)):
        settings = {key: value for values in chosen for key, value in values.items()}
        points.append(SweepPoint(settings, cell_of(content, path, settings, sweep.warm_up)))
    return SweepPlan(points[0].cell.scenario.name, tuple(axes), tuple(points), sweep.crossover)


def seeds_of(given: Sequence[int] | None, content: Mapping[str, Any]) -> Sequence[int]:
    """The seeds of a study of a scenario: those given, or as many as figures need, from the scenario's own on."""
    if given is not None:
        return given
    first = content.get(SEED, DEFAULT_SEED)
    return range(first, first + NUM_SEEDS) if isinstance(first, int) else (first,)


def _overlap(steps: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two dotted keys are equal, or one names a part of the other."""
    return all(a == b or "*" in (a, b) for a, b in zip(steps, others, strict=False))


def outcomes_of(plan: SweepPlan, reports: Mapping[str, SimReport]) -> list[SweepOutcome]:
    """An outcome for each point, in order. `reports`: by cell key."""
    found = []
    for point in plan.points:
        report = reports[point.cell.key]
        objective = point.cell.scenario.objective
        is_within = report.ttft_ms.p90 <= objective.ttft_ms and report.tpot_ms.p90 <= objective.tpot_ms
        found.append(SweepOutcome(point.settings, point.cell.key, is_within, report))
    return found


def groups_of(outcomes: Sequence[SweepOutcome], without: Collection[str]) -> list[Group]:
    """Groups by all settings except the keys `without`, in the order of their first outcomes."""
    found: dict[str, Group] = {}
    for outcome in outcomes:
        settings = _without(outcome.settings, without)
        found.setdefault(describe_settings(settings), Group(settings, [])).outcomes.append(outcome)
    return list(found.values())


def capacities_of(plan: SweepPlan, outcomes: Sequence[SweepOutcome]) -> list[Capacity]:
    """A capacity for each combination of the other keys; empty unless the load has several values."""
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


def crossings_of(plan: SweepPlan, outcomes: Sequence[SweepOutcome]) -> list[Crossing]:
    """A crossing for each combination of the other keys, except those to beat. Figures are means over seeds."""
    crossover = plan.crossover
    if crossover is None:
        return []
    key, figure, against = crossover.key, crossover.figure, crossover.against
    beside = {name for axis in plan.axes if set(axis.keys) & set(against) for name in axis.keys}
    lines: dict[str, list[Group]] = {}
    for group in groups_of(outcomes, (SEED,)):
        lines.setdefault(describe_settings(_without(group.settings, {key})), []).append(group)
    theirs: dict[str, list[float]] = {}
    for groups in lines.values():
        if against.items() <= groups[0].settings.items():
            shared = _without(groups[0].settings, {key, *beside})
            theirs[describe_settings(shared)] = [group.mean(figure) for group in _along(groups, key)]
    found = []
    for groups in lines.values():
        settings = _without(groups[0].settings, {key})
        if against.items() <= settings.items():
            continue
        along = _along(groups, key)
        beaten = theirs[describe_settings(_without(settings, beside))]
        values, ours = [group.settings[key] for group in along], [group.mean(figure) for group in along]
        found.append(crossing_of(crossover, settings, values, ours, beaten))
    return found


def _without(settings: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def _along(groups: Sequence[Group], key: str) -> list[Group]:
    return sorted(groups, key=lambda group: float(group.settings[key]))


class SweepFindings(Struct, frozen=True):
    """The file sweep.json."""

    scenario: str
    keys: tuple[str, ...]
    outcomes: list[SweepOutcome]
    capacities: list[Capacity]
    crossings: list[Crossing]


def write_sweep(
    plan: SweepPlan, outcomes: list[SweepOutcome], capacities: list[Capacity], crossings: list[Crossing], folder: Path
) -> None:
    """Writes sweep.json, and sweep.csv with one line per combination."""
    findings = SweepFindings(plan.scenario, plan.keys, outcomes, capacities, crossings)
    write_json(folder / "sweep.json", findings)
    write_csv(folder / "sweep.csv", [_row(plan, outcome) for outcome in outcomes])


def _row(plan: SweepPlan, outcome: SweepOutcome) -> dict[str, Any]:
    settings = {key: describe_value(outcome.settings[key]) if key in outcome.settings else "" for key in plan.keys}
    return {"scenario": plan.scenario} | settings | {SEED: outcome.report.seed} | figures_of(outcome.report)
