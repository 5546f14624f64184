"""Tables of sweeps and comparisons for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dsd_sim.studies.cells import describe_value
from dsd_sim.studies.compare import ComparisonFinding, ComparisonPlan, of_variant, sources_of
from dsd_sim.studies.crossover import Crossing, Crossover
from dsd_sim.studies.sweep import SEED, Capacity, SweepOutcome, SweepPlan, groups_of

WIDE = 200  # width of the output, in characters, if it is not a terminal
COLUMNS = {  # short titles: all columns and the settings fit into 80 characters
    "tokens\n/s": "tokens_per_s",
    "good-\nput": "goodput",
    "TTFT\np50": "ttft_ms.p50",
    "TTFT\np90": "ttft_ms.p90",
    "TPOT\np50": "tpot_ms.p50",
    "TPOT\np90": "tpot_ms.p90",
    "accept-\nance": "acceptance",
    "veri-\nfiers": "verifier_utilisation",
    "draf-\nters": "drafter_utilisation",
}
NAMES = {
    "tokens_per_s": "throughput, tokens/s",
    "requests_per_s": "throughput, requests/s",
    "goodput": "goodput, tokens/s",
    "tpot_ms.mean": "TPOT, mean ms",
    "ttft_ms.mean": "TTFT, mean ms",
}


def terminal() -> Console:
    """Standard output; wide if it is not a terminal, so that no column is cut."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def compact_table(title: str) -> Table:
    """A table with a first column without a name. One space between columns, so that many fit into 80 characters."""
    return Table("", title=Text(f"\n{title}"), title_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False)


def _table_by_settings(title: str, name: str, rows: Iterable[tuple[Mapping[str, Any], str]]) -> Table:
    """One value for each combination of settings."""
    table = compact_table(title)
    table.add_column(Text(name), justify="right")
    for settings, value in rows:
        table.add_row(Text(brief(settings) or "all"), value)
    return table


def name_of(figure: str) -> str:
    return NAMES.get(figure, figure)


def number(value: float) -> str:
    """With three significant digits, or all digits before the point."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def brief(settings: Mapping[str, Any]) -> str:
    """Settings by the last part of their keys, or by the whole key where the last part is ambiguous."""
    lasts = Counter(key.rpartition(".")[2] for key in settings)
    names = {key: last if lasts[last := key.rpartition(".")[2]] == 1 else key for key in settings}
    return ", ".join(f"{names[key]} {_short_value(value)}" for key, value in settings.items())


def _short_value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else describe_value(value)


# --- sweeps -----------------------------------------------------------------------------------------------------------


def sweep_table(plan: SweepPlan, outcomes: Sequence[SweepOutcome]) -> Table:
    """One line per combination; means over seeds."""
    groups = groups_of(outcomes, (SEED,))
    num_seeds = len(outcomes) // max(len(groups), 1)
    over = f", means over {num_seeds} seeds" if num_seeds > 1 else ""
    table = compact_table(f"{plan.scenario}, times in ms{over}")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        table.add_row(Text(brief(group.settings)), *(number(group.mean(figure)) for figure in COLUMNS.values()))
    return table


def capacity_table(capacities: Sequence[Capacity]) -> Table:
    """One line per combination of the keys other than the load."""
    key = capacities[0].key
    title = f"Highest {key} with p90 of TTFT and TPOT within the objective"
    return _table_by_settings(title, key, ((each.settings, label_capacity(each)) for each in capacities))


def label_capacity(capacity: Capacity) -> str:
    return ("" if capacity.is_limit else "at least ") + f"{capacity.load:g}"


def crossover_table(crossover: Crossover, crossings: Sequence[Crossing]) -> Table:
    """One line per combination that is compared."""
    figure = name_of(crossover.figure)
    title = f"{crossover.key} up to which {figure} is at least as good as with {brief(crossover.against)}"
    return _table_by_settings(title, crossover.key, ((each.settings, label_crossing(each)) for each in crossings))


def label_crossing(crossing: Crossing) -> str:
    if crossing.at is None:
        return "never"
    return number(crossing.at) if crossing.is_limit else f"above {crossing.at:g}"


# --- comparisons ------------------------------------------------------------------------------------------------------


def comparison_table(plan: ComparisonPlan, findings: Sequence[ComparisonFinding], figure: str) -> Table:
    """One line per scenario, one column per variant: value, ratio to the baseline, published ratio."""
    comparison = plan.comparison
    table = compact_table(f"{name_of(figure)}; × as much as {comparison.baseline}")
    for variant in comparison.variant:
        table.add_column(Text(variant.name))
    for scenario in plan.scenarios:
        found = [of_variant(findings, scenario, variant.name) for variant in comparison.variant]
        cells = ("\n".join(_lines(each, figure, comparison.baseline)) for each in found)
        table.add_row(Text(scenario), *(Text(cell) for cell in cells))
    return table


def _lines(finding: ComparisonFinding, figure: str, baseline: str) -> Iterator[str]:
    value, ratio = number(finding.figures[figure].mean), finding.ratios[figure]
    yield value if finding.variant == baseline or ratio is None else f"{value} {ratio:.3f}×"
    if finding.chosen:
        yield f"at {brief(finding.chosen)}"
    if figure in finding.reported:
        yield f"reported {finding.reported[figure]:.3f}×"


def notes_of(plan: ComparisonPlan) -> Iterator[str]:
    """The lines below the tables."""
    yield from (f"reported: {source}" for source in sources_of(plan.comparison))
    yield from (f"differs: {sentence}" for sentence in plan.comparison.differs)
