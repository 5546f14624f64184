"""Comparisons: variants of policies over many scenarios, as ratios to a baseline and beside published ratios.

Invariant: all variants of a scenario have the same seeds, so they meet the same requests and guesses. Figures are means
over seeds. A variant with several values counts, in each scenario, with its best one: the choice of an oracle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from msgspec import Struct
from pydantic import Field, model_validator

from dsd_sim.scenario.scenario import parse_table, read_toml, scenario_of
from dsd_sim.scenario.table import BadScenario, Positive, Table
from dsd_sim.studies.cells import WARM_UP, Cell, cell_of, describe_settings, settings_of
from dsd_sim.studies.report import FIGURES, SimReport, figure_of, is_lower_better, write_csv, write_json
from dsd_sim.studies.sweep import SEED, Seeds, WarmUp, seeds_of

FILE = "compare.toml"
SHOWN = ("tokens_per_s", "goodput", "tpot_ms.mean", "ttft_ms.mean")


def _check_figure(name: str, key: str) -> None:
    if name not in FIGURES:
        raise ValueError(f"{key} must be one of {', '.join(FIGURES)}, got {name!r}")


class Variant(Table):
    """Settings to run every scenario with. With `one_of`, that key takes each of `values` in turn."""

    name: Annotated[str, Field(min_length=1)]
    set: dict[str, Any] = Field(default_factory=dict)
    one_of: str | None = None
    values: tuple[Any, ...] = ()
    by: str = "goodput"  # figure that chooses the best value

    @model_validator(mode="after")
    def _check(self) -> Variant:
        if (self.one_of is None) == bool(self.values):
            raise ValueError("one_of and values must be given together")
        _check_figure(self.by, "by")
        return self

    @property
    def choices(self) -> tuple[dict[str, Any], ...]:
        """The settings of each value; one empty choice without `one_of`."""
        return ({},) if self.one_of is None else tuple(settings_of(self.one_of, value) for value in self.values)


class Reported(Table):
    """A published ratio: a figure of a variant in a scenario, divided by the baseline's."""

    scenario: str
    variant: str
    figure: str
    ratio: Positive
    source: str

    @model_validator(mode="after")
    def _check(self) -> Reported:
        _check_figure(self.figure, "figure")
        return self


class Comparison(Table):
    """The file of a comparison."""

    scenarios: Annotated[tuple[str, ...], Field(min_length=1)]  # file patterns, relative to this file
    baseline: str
    seeds: Seeds | None = None  # default: each scenario's own and the two after it
    warm_up: WarmUp = WARM_UP
    variant: Annotated[tuple[Variant, ...], Field(min_length=1)]
    reported: tuple[Reported, ...] = ()
    differs: tuple[str, ...] = ()  # sentences: how the assumptions differ from the published ones

    @model_validator(mode="after")
    def _check(self) -> Comparison:
        names = [variant.name for variant in self.variant]
        if len(set(names)) < len(names):
            raise ValueError("variant: two have the same name")
        if self.baseline not in names:
            raise ValueError(f"baseline must be one of {', '.join(names)}, got {self.baseline!r}")
        for each in self.reported:
            if each.variant not in names:
                raise ValueError(f"reported.variant must be one of {', '.join(names)}, got {each.variant!r}")
        return self

    @property
    def figures(self) -> tuple[str, ...]:
        """The figures to show."""
        return tuple(dict.fromkeys((*SHOWN, *(each.figure for each in self.reported))))


@dataclass(frozen=True, slots=True)
class VariantChoice:
    """A variant in a scenario with one of its values. `chosen`: the settings of the value. One cell per seed."""

    scenario: str
    variant: Variant
    chosen: dict[str, Any]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """All cells of a comparison."""

    comparison: Comparison
    choices: tuple[VariantChoice, ...]

    @property
    def cells(self) -> Iterator[Cell]:
        return (cell for choice in self.choices for cell in choice.cells)

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Names of the scenarios."""
        return tuple(dict.fromkeys(choice.scenario for choice in self.choices))


class SeedSpread(Struct, frozen=True):
    """A figure over seeds."""

    mean: float
    low: float
    high: float


class ComparisonFinding(Struct, frozen=True):
    """A variant in a scenario. `chosen`: the settings of its best value. Ratios divide means over seeds."""

    scenario: str
    variant: str
    chosen: dict[str, Any]
    seeds: tuple[int, ...]
    figures: dict[str, SeedSpread]
    ratios: dict[str, float | None]  # None where the baseline's is 0
    reported: dict[str, float]
    cells: tuple[str, ...]


# --- reading ----------------------------------------------------------------------------------------------------------


def file_of(path: Path) -> Path:
    """The file of a comparison; `path` may be its folder."""
    return path / FILE if path.is_dir() else path


def read_comparison(path: Path) -> ComparisonPlan:
    """Raises BadScenario for a comparison that can't be run, OSError for a file that can't be read."""
    comparison = parse_table(Comparison, read_toml(path), path)
    choices: list[VariantChoice] = []
    homes: dict[str, Path] = {}
    for file in _files(comparison, path):
        content = read_toml(file)
        name = scenario_of(content, file).name
        if name in homes:
            raise BadScenario(f"{file}: name: {name!r} is also the name of {homes[name]}")
        homes[name] = file
        for variant in comparison.variant:
            choices += _choices(comparison, variant, content, name, file, path)
    for number, each in enumerate(comparison.reported):
        if each.scenario not in homes:
            message = f"must be one of {', '.join(homes)}, got {each.scenario!r}"
            raise BadScenario(f"{path}: reported.{number}.scenario: {message}")
    return ComparisonPlan(comparison, tuple(choices))


def _files(comparison: Comparison, path: Path) -> list[Path]:
    found: set[Path] = set()
    for pattern in comparison.scenarios:
        try:
            files = {each for each in path.parent.glob(pattern) if each.is_file() and each != path}
        except (ValueError, NotImplementedError) as error:
            raise BadScenario(f"{path}: scenarios: {pattern!r} is not a file pattern: {error}") from error
        if not files:
            raise BadScenario(f"{path}: scenarios: no file matches {pattern!r}")
        found |= files
    return sorted(found)


def _choices(
    comparison: Comparison, variant: Variant, content: dict[str, Any], name: str, file: Path, path: Path
) -> Iterator[VariantChoice]:
    """A choice for each value of the variant in one scenario."""
    fixed: dict[str, Any] = {}
    for key, value in variant.set.items():
        fixed |= settings_of(key, value)
    seeds = seeds_of(comparison.seeds, content)
    for chosen in variant.choices:
        try:
            cells = tuple(cell_of(content, file, fixed | chosen | {SEED: seed}, comparison.warm_up) for seed in seeds)
        except BadScenario as error:
            raise BadScenario(f"{path}: variant {variant.name!r}: {error}") from error
        yield VariantChoice(name, variant, chosen, cells)


# --- finding ----------------------------------------------------------------------------------------------------------


def findings_of(plan: ComparisonPlan, reports: Mapping[str, SimReport]) -> list[ComparisonFinding]:
    """A finding for each variant in each scenario. `reports`: by cell key."""
    comparison = plan.comparison
    found = []
    for scenario in plan.scenarios:
        best = {each.name: _best(plan, scenario, each, reports) for each in comparison.variant}
        spreads = {name: _spreads(choice, reports) for name, choice in best.items()}
        base = spreads[comparison.baseline]
        for name, choice in best.items():
            means = {figure: (spread.mean, base[figure].mean) for figure, spread in spreads[name].items()}
            ratios = {figure: mean / basis if basis else None for figure, (mean, basis) in means.items()}
            reported = {
                each.figure: each.ratio
                for each in comparison.reported
                if (each.scenario, each.variant) == (scenario, name)
            }
            keys = tuple(cell.key for cell in choice.cells)
            seeds = tuple(cell.scenario.seed for cell in choice.cells)
            found.append(ComparisonFinding(scenario, name, choice.chosen, seeds, spreads[name], ratios, reported, keys))
    return found


def _best(plan: ComparisonPlan, scenario: str, variant: Variant, reports: Mapping[str, SimReport]) -> VariantChoice:
    """The choice with the best mean; of equal ones the first."""
    choices = [each for each in plan.choices if (each.scenario, each.variant.name) == (scenario, variant.name)]
    means = [fmean(_figures(choice, variant.by, reports)) for choice in choices]
    best = min(means) if is_lower_better(variant.by) else max(means)
    return choices[means.index(best)]


def _spreads(choice: VariantChoice, reports: Mapping[str, SimReport]) -> dict[str, SeedSpread]:
    found = {}
    for name in FIGURES:
        values = _figures(choice, name, reports)
        found[name] = SeedSpread(fmean(values), min(values), max(values))
    return found


def _figures(choice: VariantChoice, name: str, reports: Mapping[str, SimReport]) -> list[float]:
    """The figure with each seed."""
    return [figure_of(reports[cell.key], name) for cell in choice.cells]


# --- writing ----------------------------------------------------------------------------------------------------------


class ComparisonFindings(Struct, frozen=True):
    """The file compare.json."""

    baseline: str
    findings: list[ComparisonFinding]
    sources: tuple[str, ...]
    differs: tuple[str, ...]


def sources_of(comparison: Comparison) -> tuple[str, ...]:
    """The sources of the published ratios, without repetition."""
    return tuple(dict.fromkeys(each.source for each in comparison.reported))


def write_comparison(plan: ComparisonPlan, findings: list[ComparisonFinding], folder: Path) -> None:
    """Writes compare.json, and compare.csv with one line per scenario, variant and figure."""
    comparison = plan.comparison
    written = ComparisonFindings(comparison.baseline, findings, sources_of(comparison), comparison.differs)
    write_json(folder / "compare.json", written)
    write_csv(folder / "compare.csv", [row for finding in findings for row in _rows(finding)])


def _rows(finding: ComparisonFinding) -> Iterator[dict[str, Any]]:
    for name, spread in finding.figures.items():
        ratio = finding.ratios[name]
        yield {
            "scenario": finding.scenario,
            "variant": finding.variant,
            "chosen": describe_settings(finding.chosen),
            "seeds": " ".join(map(str, finding.seeds)),
            "figure": name,
            "mean": spread.mean,
            "low": spread.low,
            "high": spread.high,
            "ratio": "" if ratio is None else ratio,
            "reported": finding.reported.get(name, ""),
        }


def of_variant(findings: Sequence[ComparisonFinding], scenario: str, variant: str) -> ComparisonFinding:
    return next(each for each in findings if (each.scenario, each.variant) == (scenario, variant))
