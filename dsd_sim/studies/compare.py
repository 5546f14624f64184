"""Comparisons: variants of policies over many scenarios, each as a ratio to a baseline, beside what others reported.

Invariant: all variants of a scenario meet the same requests and guesses, with the same seeds; figures are means over
these. A variant of several values counts, in each scenario, with the one that was best there: an oracle's choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import msgspec
from msgspec import Struct
from pydantic import Field, model_validator

from dsd_sim.scenario.scenario import read_toml, scenario_of
from dsd_sim.scenario.table import BadScenario, Part, Positive
from dsd_sim.studies.cells import Cell, cell_of, part_of, settings_of, told_settings
from dsd_sim.studies.report import FIGURES, Report, figure_of, is_lower_better, write_csv
from dsd_sim.studies.sweep import SEED, Seeds

FILE = "compare.toml"
SHOWN = ("tokens_per_s", "goodput", "tpot_ms.mean", "ttft_ms.mean")


def _check_figure(name: str, key: str) -> None:
    if name not in FIGURES:
        raise ValueError(f"{key} {name!r} must be a figure of a report: {', '.join(FIGURES)}")


class Variant(Part):
    """A way to run every scenario: settings by dotted keys. With `one_of`, that key has each of the values in turn."""

    name: Annotated[str, Field(min_length=1)]
    set: dict[str, Any] = Field(default_factory=dict)
    one_of: str | None = None
    values: tuple[Any, ...] = ()
    by: str = "goodput"  # the figure by which the best value is chosen

    @model_validator(mode="after")
    def _check(self) -> Variant:
        if (self.one_of is None) == bool(self.values):
            raise ValueError("one_of and values must be given together")
        _check_figure(self.by, "by")
        return self

    @property
    def choices(self) -> tuple[dict[str, Any], ...]:
        """What one_of sets; one that is empty without it."""
        return ({},) if self.one_of is None else tuple(settings_of(self.one_of, value) for value in self.values)


class Reported(Part):
    """What others found: a figure of a variant in a scenario, divided by the baseline's."""

    scenario: str
    variant: str
    figure: str
    ratio: Positive
    source: str

    @model_validator(mode="after")
    def _check(self) -> Reported:
        _check_figure(self.figure, "figure")
        return self


class Comparison(Part):
    """The file of a comparison."""

    scenarios: Annotated[tuple[str, ...], Field(min_length=1)]  # patterns of files, relative to this one
    baseline: str
    seeds: Seeds | None = None  # the scenarios' own
    variant: Annotated[tuple[Variant, ...], Field(min_length=1)]
    reported: tuple[Reported, ...] = ()
    differs: tuple[str, ...] = ()  # sentences: what others assumed otherwise

    @model_validator(mode="after")
    def _check(self) -> Comparison:
        names = [variant.name for variant in self.variant]
        if len(set(names)) < len(names):
            raise ValueError("variant: two have the same name")
        if self.baseline not in names:
            raise ValueError(f"baseline {self.baseline!r} must be one of {', '.join(names)}")
        for each in self.reported:
            if each.variant not in names:
                raise ValueError(f"reported.variant {each.variant!r} must be one of {', '.join(names)}")
        return self

    @property
    def figures(self) -> tuple[str, ...]:
        """Those that are shown."""
        return tuple(dict.fromkeys((*SHOWN, *(each.figure for each in self.reported))))


@dataclass(frozen=True, slots=True)
class Choice:
    """A variant in a scenario with one of its values. `chosen`: what that value set; a cell for each seed."""

    scenario: str
    variant: Variant
    chosen: dict[str, Any]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that has to be run."""

    comparison: Comparison
    choices: tuple[Choice, ...]

    @property
    def cells(self) -> Iterator[Cell]:
        return (cell for choice in self.choices for cell in choice.cells)

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(dict.fromkeys(choice.scenario for choice in self.choices))


class Spread(Struct, frozen=True):
    """Of a figure over seeds."""

    mean: float
    low: float
    high: float


class Finding(Struct, frozen=True):
    """A variant in a scenario. `chosen`: what its best value set; ratios are of means, to those of the baseline."""

    scenario: str
    variant: str
    chosen: dict[str, Any]
    seeds: tuple[int, ...]
    figures: dict[str, Spread]
    ratios: dict[str, float | None]  # None where the baseline's is 0
    reported: dict[str, float]
    cells: tuple[str, ...]


# --- reading ----------------------------------------------------------------------------------------------------------


def file_of(path: Path) -> Path:
    """A comparison's file, which may be named by its folder."""
    return path / FILE if path.is_dir() else path


def read_comparison(path: Path) -> Plan:
    """`path`: of the file. Raises BadScenario for what can't be run, OSError for a file that can't be read."""
    comparison = part_of(Comparison, read_toml(path), path)
    choices: list[Choice] = []
    homes: dict[str, Path] = {}
    for file in _files(comparison, path):
        content = read_toml(file)
        name = scenario_of(content, file).name
        if name in homes:
            raise BadScenario(f"{file}: name: {name!r} is the name of {homes[name]}, too")
        homes[name] = file
        for variant in comparison.variant:
            choices += _choices(comparison, variant, content, name, file, path)
    for number, each in enumerate(comparison.reported):
        if each.scenario not in homes:
            message = f"{each.scenario!r} must be the name of one of {', '.join(homes)}"
            raise BadScenario(f"{path}: reported.{number}.scenario: {message}")
    return Plan(comparison, tuple(choices))


def _files(comparison: Comparison, path: Path) -> list[Path]:
    found: set[Path] = set()
    for pattern in comparison.scenarios:
        try:
            files = {each for each in path.parent.glob(pattern) if each.is_file() and each != path}
        except (ValueError, NotImplementedError) as error:
            raise BadScenario(f"{path}: scenarios: {pattern!r} is no pattern of files: {error}") from error
        if not files:
            raise BadScenario(f"{path}: scenarios: no file is like {pattern!r}")
        found |= files
    return sorted(found)


def _choices(
    comparison: Comparison, variant: Variant, content: dict[str, Any], name: str, file: Path, path: Path
) -> Iterator[Choice]:
    """Of one scenario: a choice for each value of the variant."""
    fixed: dict[str, Any] = {}
    for key, value in variant.set.items():
        fixed |= settings_of(key, value)
    seeds: list[dict[str, Any]] = [{}] if comparison.seeds is None else [{SEED: seed} for seed in comparison.seeds]
    for chosen in variant.choices:
        try:
            cells = tuple(cell_of(content, file, fixed | chosen | seed) for seed in seeds)
        except BadScenario as error:
            raise BadScenario(f"{path}: variant {variant.name!r}: {error}") from error
        yield Choice(name, variant, chosen, cells)


# --- finding ----------------------------------------------------------------------------------------------------------


def findings_of(plan: Plan, reports: Mapping[str, Report]) -> list[Finding]:
    """Of each variant in each scenario; `reports` by the keys of cells."""
    comparison = plan.comparison
    found = []
    for scenario in plan.scenarios:
        best = {each.name: _best(plan, scenario, each, reports) for each in comparison.variant}
        spreads = {name: _spreads(choice, reports) for name, choice in best.items()}
        base = spreads[comparison.baseline]
        for name, choice in best.items():
            ratios = {figure: _ratio(spread.mean, base[figure].mean) for figure, spread in spreads[name].items()}
            told = {
                each.figure: each.ratio
                for each in comparison.reported
                if (each.scenario, each.variant) == (scenario, name)
            }
            keys = tuple(cell.key for cell in choice.cells)
            seeds = tuple(cell.scenario.seed for cell in choice.cells)
            found.append(Finding(scenario, name, choice.chosen, seeds, spreads[name], ratios, told, keys))
    return found


def _best(plan: Plan, scenario: str, variant: Variant, reports: Mapping[str, Report]) -> Choice:
    """The choice with the best mean; the first of equal ones."""
    choices = [each for each in plan.choices if (each.scenario, each.variant.name) == (scenario, variant.name)]
    means = [fmean(_figures(choice, variant.by, reports)) for choice in choices]
    best = min(means) if is_lower_better(variant.by) else max(means)
    return choices[means.index(best)]


def _spreads(choice: Choice, reports: Mapping[str, Report]) -> dict[str, Spread]:
    found = {}
    for name in FIGURES:
        values = _figures(choice, name, reports)
        found[name] = Spread(fmean(values), min(values), max(values))
    return found


def _figures(choice: Choice, name: str, reports: Mapping[str, Report]) -> list[float]:
    """With each seed."""
    return [figure_of(reports[cell.key], name) for cell in choice.cells]


def _ratio(value: float, base: float) -> float | None:
    return value / base if base else None


# --- writing ----------------------------------------------------------------------------------------------------------


class Findings(Struct, frozen=True):
    """A comparison's JSON file."""

    baseline: str
    findings: list[Finding]
    sources: tuple[str, ...]
    differs: tuple[str, ...]


def sources_of(comparison: Comparison) -> tuple[str, ...]:
    """Of the reported ratios, each once."""
    return tuple(dict.fromkeys(each.source for each in comparison.reported))


def write_comparison(plan: Plan, findings: list[Finding], folder: Path) -> None:
    """Writes compare.json, and compare.csv with a line for each figure of each variant in each scenario."""
    comparison = plan.comparison
    written = Findings(comparison.baseline, findings, sources_of(comparison), comparison.differs)
    content = msgspec.json.format(msgspec.json.encode(written), indent=1)
    (folder / "compare.json").write_bytes(content + b"\n")
    write_csv(folder / "compare.csv", [row for finding in findings for row in _rows(finding)])


def _rows(finding: Finding) -> Iterator[dict[str, Any]]:
    for name, spread in finding.figures.items():
        ratio = finding.ratios[name]
        yield {
            "scenario": finding.scenario,
            "variant": finding.variant,
            "chosen": told_settings(finding.chosen),
            "seeds": " ".join(map(str, finding.seeds)),
            "figure": name,
            "mean": spread.mean,
            "low": spread.low,
            "high": spread.high,
            "ratio": "" if ratio is None else ratio,
            "reported": finding.reported.get(name, ""),
        }


def of_variant(findings: Sequence[Finding], scenario: str, variant: str) -> Finding:
    return next(each for each in findings if (each.scenario, each.variant) == (scenario, variant))
