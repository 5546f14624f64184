"""The tables of docs/reports/paper.md: python -m benchmarks.paper. Finished simulations are kept, so it continues.

Invariant: figures come from the files of scenarios/paper and the code as it is now.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness.files import REPORTS, ROOT
from benchmarks.harness.origin import Origin
from benchmarks.paper.assumptions import GRID, cells_of, outcome_of
from benchmarks.paper.tables import (
    SeededFindings,
    alone_table,
    cells_table,
    claims_table,
    closest_table,
    met_table,
    placed,
    routing_table,
    spread_of,
    steps_table,
)
from dsd_sim.studies.cli import reports_of
from dsd_sim.studies.compare import findings_of, read_comparison
from dsd_sim.studies.sweep import outcomes_of, read_plan

SCENARIOS = ROOT / "scenarios" / "paper"
CELL = SCENARIOS / "gsm8k-600-10.toml"
PAGE = REPORTS.parent / "paper.md"


def main(
    folder: Annotated[Path, typer.Option(help="Folder of the finished simulations.")] = Path("results/paper"),
    page: Annotated[Path, typer.Option(help="The page whose tables are written.")] = PAGE,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes.", show_default="one per core")] = None,
) -> None:
    """Runs the paper's cells, its routers and the sweep of assumptions, and writes the tables of the report."""
    tables: dict[str, str] = {}
    comparison = read_comparison(SCENARIOS / "compare.toml")
    reports = reports_of(comparison.cells, folder, workers)
    found = SeededFindings(comparison, findings_of(comparison, reports), reports)
    tables["cells"], tables["steps"] = cells_table(found), steps_table(found)
    routing = read_plan(SCENARIOS / "routing" / "routing.toml")
    routed = outcomes_of(routing, reports_of((point.cell for point in routing.points), folder, workers))
    tables["routing"] = routing_table(routed)
    assumed = {each: list(cells_of(each, CELL)) for each in GRID}
    reports = reports_of((cell for cells in assumed.values() for cell in cells), folder, workers)
    outcomes = [outcome_of(each, cells, reports) for each, cells in assumed.items()]
    tables |= {"met": met_table(outcomes), "alone": alone_table(outcomes), "closest": closest_table(outcomes)}
    tables["claims"] = claims_table(found, routed, outcomes)
    origin = Origin.here("benchmarks.paper")
    ranges = "Means over three seeds; ratios with 95 % bootstrap intervals over these, which three seeds make wide."
    spread = f"Requests per second of a variant in a cell differ by up to {spread_of(found.findings)} between seeds."
    tables["origin"] = f"`{origin.command}`, {origin.date}, {origin.machine}. {ranges} {spread}"
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        text = placed(text, name, table)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
