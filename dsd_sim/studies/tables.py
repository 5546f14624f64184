"""Tables of sweeps and comparisons for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dsd_sim.studies.cells import told
from dsd_sim.studies.compare import Finding, Plan, of_variant, sources_of
from dsd_sim.studies.crossover import Crossing, Crossover
from dsd_sim.studies.sweep import SEED, Capacity, Outcome, groups_of
from dsd_sim.studies.sweep import Plan as SweepPlan

WIDE = 200  # columns where there is no terminal to say how many
COLUMNS = {  # short, so that all of them and the settings fit into 80 columns
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
    """Standard output; wide where it is no terminal, so that no column is cut."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def _tight(title: str) -> Table:
    """With no more between columns than a space, so that many fit into 80 characters."""
    return Table(title=Text(f"\n{title}"), title_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False)


def name_of(figure: str) -> str:
    return NAMES.get(figure, figure)


def number(value: float) -> str:
    """With three digits or all before the point."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def brief(settings: Mapping[str, Any]) -> str:
    """Settings with the last part of their keys, where that names one of them only."""
    lasts = Counter(key.rpartition(".")[2] for key in settings)
    names = {key: last if lasts[last := key.rpartition(".")[2]] == 1 else key for key in settings}
    return ", ".join(f"{names[key]} {_told(value)}" for key, value in settings.items())


def _told(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else told(value)


# --- sweeps -----------------------------------------------------------------------------------------------------------


def sweep_table(plan: SweepPlan, outcomes: Sequence[Outcome]) -> Table:
    """A line for each combination; means over seeds."""
    groups = groups_of(outcomes, (SEED,))
    num_seeds = len(outcomes) // max(len(groups), 1)
    over = f", means over {num_seeds} seeds" if num_seeds > 1 else ""
    table = _tight(f"{plan.scenario}, times in ms{over}")
    table.add_column("")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        table.add_row(Text(brief(group.settings)), *(number(group.mean(figure)) for figure in COLUMNS.values()))
    return table


def capacity_table(capacities: Sequence[Capacity]) -> Table:
    """A line for each combination of what isn't the load."""
    key = capacities[0].key
    title = f"Highest {key} with p90 of TTFT and TPOT within the objective"
    table = _tight(title)
    table.add_column("")
    table.add_column(Text(key), justify="right")
    for capacity in capacities:
        table.add_row(Text(brief(capacity.settings) or "all"), told_capacity(capacity))
    return table


def told_capacity(capacity: Capacity) -> str:
    return ("" if capacity.is_limit else "at least ") + f"{capacity.load:g}"


def crossover_table(crossover: Crossover, crossings: Sequence[Crossing]) -> Table:
    """A line for each combination that is compared."""
    title = f"Up to which {crossover.key} {name_of(crossover.figure)} is as good as with {brief(crossover.against)}"
    table = _tight(title)
    table.add_column("")
    table.add_column(Text(crossover.key), justify="right")
    for crossing in crossings:
        table.add_row(Text(brief(crossing.settings) or "all"), told_crossing(crossing))
    return table


def told_crossing(crossing: Crossing) -> str:
    if crossing.at is None:
        return "never"
    return number(crossing.at) if crossing.is_limit else f"above {crossing.at:g}"


# --- comparisons ------------------------------------------------------------------------------------------------------


def comparison_table(plan: Plan, findings: Sequence[Finding], figure: str) -> Table:
    """A line for each scenario, a column for each variant: value, ratio to the baseline, what others reported."""
    comparison = plan.comparison
    title = f"{name_of(figure)}; × as much as {comparison.baseline}"
    table = _tight(title)
    table.add_column("")
    for variant in comparison.variant:
        table.add_column(Text(variant.name))
    for scenario in plan.scenarios:
        found = [of_variant(findings, scenario, variant.name) for variant in comparison.variant]
        cells = ("\n".join(_lines(each, figure, comparison.baseline)) for each in found)
        table.add_row(Text(scenario), *(Text(cell) for cell in cells))
    return table


def _lines(finding: Finding, figure: str, baseline: str) -> Iterator[str]:
    value, ratio = number(finding.figures[figure].mean), finding.ratios[figure]
    yield value if finding.variant == baseline or ratio is None else f"{value} {ratio:.3f}×"
    if finding.chosen:
        yield f"at {brief(finding.chosen)}"
    if figure in finding.reported:
        yield f"reported {finding.reported[figure]:.3f}×"


def notes_of(plan: Plan) -> Iterator[str]:
    """What stands below the tables."""
    yield from (f"reported: {source}" for source in sources_of(plan.comparison))
    yield from (f"differs: {sentence}" for sentence in plan.comparison.differs)
