"""What DSD's services cost at scale, with replayed models: python -m benchmarks.scale --help.

Invariant: a cell counts if it comes from the same code, models and timing, and nothing else computed meanwhile. The
same command continues where it was stopped. The report is made from the cells alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from benchmarks.harness.cell import exit_on_signals
from benchmarks.harness.files import ROOT, write_result
from benchmarks.harness.origin import Origin, digest_of
from benchmarks.scale.capacity import Assumptions, Costs, Needed, costs_of, needed, users_of_a_verifier
from benchmarks.scale.cells import Cell, Timing, full_plan, plan_table
from benchmarks.scale.measuring import Run, measure
from benchmarks.scale.prediction import factor_of, predict
from benchmarks.scale.report import LEAST_CELLS, NOT_RUN, assumptions_table, capacity_notes, capacity_table, markdown
from benchmarks.scale.results import CellResult, path_of, read_cell
from benchmarks.scale.system import allow_connections
from shared.runtime.home import default_models_dir

FOLDER = ROOT / "docs" / "reports" / "scale"

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def notify(line: str) -> None:
    console.print(line, highlight=False, markup=False)


def chosen(plan: Sequence[Cell], names: Sequence[str]) -> list[Cell]:
    """The cells of these names; all without names."""
    if unknown := set(names) - {cell.name for cell in plan}:
        known = ", ".join(cell.name for cell in plan)
        raise typer.BadParameter(f"--only {unknown.pop()} is no cell; cells: {known}")
    return [cell for cell in plan if not names or cell.name in names]


def results_in(folder: Path, plan: Sequence[Cell]) -> list[CellResult]:
    """In the order of the plan."""
    return [found for cell in plan if (found := read_cell(cell, folder)) is not None]


def fitted(results: Sequence[CellResult]) -> Costs | None:
    """None: too few cells count."""
    good = [each for each in results if each.counts]
    return costs_of(good) if len(good) >= LEAST_CELLS else None


def answer_of(costs: Costs | None, assumed: Assumptions) -> Needed | None:
    """None without costs. Raises ValueError if no number of gateways is enough."""
    return needed(costs, assumed, users_of_a_verifier(assumed, costs.gap)) if costs else None


def write_report(plan: Sequence[Cell], folder: Path, assumed: Assumptions) -> Path:
    """Beside the folder of the cells, under its name."""
    results = results_in(folder, plan)
    costs = fitted(results)
    try:
        answer = answer_of(costs, assumed)
    except ValueError as error:
        notify(f"no answer for {assumed.users:,} users: {error}")
        answer = None
    path = folder.with_name(f"{folder.name}.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(markdown(plan, results, costs, assumed, answer), encoding="utf-8")
    return path


async def measure_all(run: Run, todo: Sequence[Cell], folder: Path) -> None:
    """Each cell is in the folder as soon as it is measured."""
    for number, cell in enumerate(todo, start=1):
        slower = factor_of(cell)
        notify(f"{cell.name} ({number} of {len(todo)}), times × {slower:g}")
        result = await _measured(run, cell, slower)
        if result is not None:
            write_result(path_of(cell, folder), result)
            write_result(path_of(cell, folder), replace(result, predicted=predict(result)))
            notify(f"{result.tokens_per_s:.0f} tokens/s, {'; '.join(result.complaints) or 'counts'}")


async def _measured(run: Run, cell: Cell, slower: float) -> CellResult | None:
    """None if the cell failed: the next one may go well."""
    try:
        return await measure(run, cell, slower, notify)
    except (OSError, RuntimeError, ExceptionGroup) as error:
        reasons = error.exceptions if isinstance(error, ExceptionGroup) else [error]
        notify(f"{cell.name} failed: {reasons[0]}")
        return None


@app.command()
def main(
    show_plan: Annotated[bool, typer.Option("--plan", help="Only print the cells and their estimated time.")] = False,
    report_only: Annotated[bool, typer.Option("--report", help="Only write the report of measured cells.")] = False,
    capacity: Annotated[
        bool, typer.Option(help="Only print what so many users need, from the measured cells.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help="Only this cell; repeat it.")] = None,
    users: Annotated[int, typer.Option(min=1, help="Users who wait for tokens at the same time.")] = 10_000,
    tpot_ms: Annotated[float, typer.Option(min=1, help="TPOT of each user.")] = 50.0,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 300,
    users_per_drafter: Annotated[int, typer.Option(min=1, help="Users for each drafter.")] = 8,
    idle_s: Annotated[float, typer.Option(min=1, help="Seconds that are measured without sessions.")] = 15.0,
    slice_s: Annotated[float, typer.Option(min=1, help="Seconds of a slice with all sessions.")] = 10.0,
    slices: Annotated[int, typer.Option(min=1, help="Slices of a cell.")] = 6,
    folder: Annotated[Path, typer.Option(help="Folder of the cells.", show_default="docs/reports/scale")] = FOLDER,
    busy: Annotated[bool, typer.Option("--busy", help="Try it while other programs compute: cells are void.")] = False,
) -> None:
    """Measures cell by cell what a token costs each service. Finished cells are kept."""
    exit_on_signals()
    plan, timing = full_plan(), Timing(idle_s, slice_s, slices)
    todo = chosen(plan, only or [])
    if show_plan:
        print(plan_table(todo, timing))
        return
    assumed = Assumptions(users, tpot_ms, answer_tokens, users_per_drafter)
    if capacity:
        try:
            answer = answer_of(fitted(results_in(folder, plan)), assumed)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        _print_capacity(answer, assumed)
        return
    if busy and folder == FOLDER:
        raise typer.BadParameter("--busy needs --folder, so that trials do not replace the report")
    if not report_only:
        allow_connections()
        models = default_models_dir()
        inputs = digest_of(models, msgspec.json.encode(timing))
        run = Run(models, timing, inputs, Origin.here("benchmarks.scale"), busy)
        results = [each for each in results_in(folder, plan) if each.counts and each.inputs == inputs]
        for each in results:
            if each.predicted is None:  # the last run ended first
                write_result(path_of(each.cell, folder), replace(each, predicted=predict(each)))
        kept = {each.cell for each in results}
    try:
        if not report_only:
            asyncio.run(measure_all(run, [cell for cell in todo if cell not in kept], folder))
    finally:
        notify(f"see {write_report(plan, folder, assumed)}")


def _print_capacity(answer: Needed | None, assumed: Assumptions) -> None:
    if answer is None:
        print(NOT_RUN)
        raise typer.Exit(1)
    print("\n\n".join((capacity_table(answer, assumed), assumptions_table(assumed), capacity_notes(assumed))))


if __name__ == "__main__":
    app()
