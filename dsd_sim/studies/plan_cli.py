"""The command `python -m dsd_sim plan`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from dsd_sim.studies.cli import OUT, Out, Workers, exit_on_bad_input, print_written, reports_of
from dsd_sim.studies.plan import DeviceClass, DevicePlan, Goal, PlanRow, read_plan, rows_of, write_plan
from dsd_sim.studies.tables import compact_table, number, terminal

FIGURES = {  # of a PlanRow, by column
    "tokens/s per\nsession": "session_goodput",
    "tokens/s per\nverifier": "goodput",
    "cost per\nmillion": "cost",
    "J per\ntoken": "energy",
    "veri-\nfiers": "verifier_utilisation",
    "draf-\nters": "drafter_utilisation",
}


def plan(
    file: Annotated[Path, typer.Argument(help="A plan (TOML).")],
    objective: Annotated[Goal, typer.Option(help="The objective of the choice.")] = Goal.GOODPUT,
    out: Out = None,
    workers: Workers = None,
) -> None:
    """Picks draft model, quantisation and window for each class of devices. A stopped plan continues."""
    folder = out or OUT / file.stem
    with exit_on_bad_input(file):
        planned = read_plan(file)
        cells = (candidate.cell for candidate in planned.candidates)
        rows = rows_of(planned, reports_of(cells, folder, workers))
        write_plan(planned, rows, folder)
    from dsd_sim.studies.plan_plot import plot_plan  # loads matplotlib

    plot = plot_plan(planned.deployment.name, rows, folder)
    _show(planned, rows, objective)
    print_written([folder / "plan.json", folder / "plan.csv", plot])


def _show(planned: DevicePlan, rows: Sequence[PlanRow], goal: Goal) -> None:
    console = terminal()
    deployment = planned.deployment
    choices = []
    for device in deployment.edge:
        own = [row for row in rows if row.device == device.name]
        console.print(table_of(device, deployment.transport, own, goal))
        choices.append(describe_choice(device, own, goal))
    for line in (*choices, *(f"assumed: {sentence}" for sentence in deployment.assumed)):
        console.print(Text(line), soft_wrap=True)


def table_of(device: DeviceClass, transport: str, rows: Sequence[PlanRow], goal: Goal) -> Table:
    """The candidates of a class, the best first; dominated ones are marked."""
    table = compact_table(f"{device.name}, {transport}, by {goal}")
    table.add_column("window", justify="right")
    for name in FIGURES:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    which = list(Goal).index(goal)
    for row in sorted(rows, key=lambda row: (row.losses[which], row.losses)):
        figures = (number(getattr(row, name)) for name in FIGURES.values())
        mark = "dominated" if row.is_dominated else ", ".join(f"best {each}" for each in row.best_for)
        table.add_row(Text(_draft_of(row)), str(row.window), *figures, mark)
    return table


def describe_choice(device: DeviceClass, rows: Sequence[PlanRow], goal: Goal) -> str:
    row = next((row for row in rows if goal in row.best_for), None)
    if row is None:
        return f"{device.name}: no candidate meets the latency objective"
    how = f"{_draft_of(row)}, window {row.window}" if row.draft else "cloud alone"
    return (
        f"{device.name}: {how}, for the best {goal}: {number(row.session_goodput)} tokens/s per session, "
        f"{number(row.cost)} per million tokens, {number(row.energy)} J per token; "
        f"verifiers for {device.count:,} devices: {row.num_verifiers:,}"
    )


def _draft_of(row: PlanRow) -> str:
    return f"{row.draft} {row.quantisation}".strip() or "cloud alone"
