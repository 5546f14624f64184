"""The commands of `python -m dsd_sim`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from dsd_sim.engine.fleet import SimFleet
from dsd_sim.roofline.cli import roofline
from dsd_sim.scenario.scenario import Scenario, read_toml
from dsd_sim.scenario.table import BadScenario
from dsd_sim.studies.cells import NUM_SEEDS, WARM_UP, Cell, cell_of, fleet_of, run_fleet
from dsd_sim.studies.cli import OUT, Out, Workers, compile_now, exit_on_bad_input, print_written, reports_of
from dsd_sim.studies.compare import FILE, file_of, findings_of, read_comparison, write_comparison
from dsd_sim.studies.plan_cli import plan
from dsd_sim.studies.report import SimReport, figures_of, table_of, write_csv
from dsd_sim.studies.sweep import SEED, capacities_of, crossings_of, outcomes_of, read_plan, write_sweep
from dsd_sim.studies.tables import capacity_table, comparison_table, crossover_table, notes_of, sweep_table, terminal
from dsd_sim.studies.trace import LOG_ROOM, cut_ms, write_trace

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """DSD-Sim simulates fleets of drafters and verifiers in virtual time."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # cleans up, as Ctrl-C does


@app.command()
def run(
    scenario: Annotated[Path, typer.Argument(help="A scenario file (TOML).")],
    policy: Annotated[
        str | None, typer.Option(help="Window policy, in place of the scenario's: name or module:Class.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs for the table, with the scenario's seed and those after it.")
    ] = NUM_SEEDS,
    warm_up: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of the requests that figures leave out.")
    ] = WARM_UP,
    json: Annotated[bool, typer.Option("--json", help="Print the report of the scenario's seed as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json and report.csv of that seed.")] = None,
    trace: Annotated[Path | None, typer.Option(help="File for a trace to open in Perfetto (JSON).")] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for plots of windows, utilisation and times.")] = None,
) -> None:
    """Runs one scenario and prints means over some seeds. Files hold the run with the scenario's own seed."""
    settings: dict[str, Any] = {} if policy is None else {"policies.windows": policy}
    with exit_on_bad_input(scenario):
        content = read_toml(scenario)
        if "sweep" in content:
            raise BadScenario(f"{scenario}: sweep: `run` takes no file with this table; use `sweep`")
        cell = cell_of(content, scenario, settings, warm_up)
        fleet = fleet_of(cell, LOG_ROOM if trace or plots else 0)
        compile_now()
        with _watched(fleet):
            report = run_fleet(cell, fleet)
        _write_run(cell.scenario, fleet, report, out, trace, plots)
        if json:
            sys.stdout.write(report.encode().decode())
            return
        further = range(cell.scenario.seed + 1, cell.scenario.seed + seeds)
        reports = [report, *(_rerun(cell_of(content, scenario, settings | {SEED: seed}, warm_up)) for seed in further)]
    terminal().print(table_of(reports, len(fleet.world.requests)))


def _rerun(cell: Cell) -> SimReport:
    fleet = fleet_of(cell)
    with _watched(fleet):
        return run_fleet(cell, fleet)


@app.command()
def sweep(
    scenario: Annotated[Path, typer.Argument(help="A scenario file with a sweep table.")],
    out: Out = None,
    workers: Workers = None,
) -> None:
    """Runs a scenario with every combination of the values in its sweep table. A stopped sweep continues."""
    folder = out or OUT / scenario.stem
    with exit_on_bad_input(scenario):
        plan = read_plan(scenario)
        outcomes = outcomes_of(plan, reports_of((point.cell for point in plan.points), folder, workers))
        capacities = capacities_of(plan, outcomes)
        crossings = crossings_of(plan, outcomes)
        write_sweep(plan, outcomes, capacities, crossings, folder)
        from dsd_sim.studies.plots import plot_capacities, plot_sweep  # loads matplotlib

        plots = plot_sweep(plan, outcomes, folder)
        if capacities:
            plots.append(plot_capacities(capacities, folder))
    console = terminal()
    console.print(sweep_table(plan, outcomes))
    if capacities:
        console.print(capacity_table(capacities))
    if plan.crossover is not None:
        console.print(crossover_table(plan.crossover, crossings))
    print_written([folder / "sweep.json", folder / "sweep.csv", *plots])


@app.command()
def compare(
    comparison: Annotated[Path, typer.Argument(help="A comparison (TOML), or a folder with compare.toml.")],
    out: Out = None,
    workers: Workers = None,
) -> None:
    """Runs scenarios with several variants of their policies, and prints ratios to one of them. A stopped comparison
    continues."""
    path = file_of(comparison)
    name = path.resolve().parent.name if path.name == FILE else path.stem
    folder = out or OUT / name
    with exit_on_bad_input(path):
        plan = read_comparison(path)
        findings = findings_of(plan, reports_of(plan.cells, folder, workers))
        write_comparison(plan, findings, folder)
        from dsd_sim.studies.plots import plot_comparison  # loads matplotlib

        plots = plot_comparison(plan, findings, folder)
    console = terminal()
    for figure in plan.comparison.figures:
        console.print(comparison_table(plan, findings, figure))
    for log_entry in notes_of(plan):
        console.print(Text(log_entry), soft_wrap=True)
    print_written([folder / "compare.json", folder / "compare.csv", *plots])


app.command()(roofline)
app.command()(plan)


@contextmanager
def _watched(fleet: SimFleet) -> Iterator[None]:
    """Shows the progress of a run in one line, if standard error is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    num = len(fleet.world.requests)

    def line() -> Text:
        return Text(f"{fleet.num_done:,} of {num:,} requests are done, after {fleet.now / 1000:,.0f} s of virtual time")

    with Live(get_renderable=line, console=console, transient=True):
        yield


def _write_run(
    scenario: Scenario, fleet: SimFleet, report: SimReport, out: Path | None, trace: Path | None, plots: Path | None
) -> None:
    """Writes the outputs that the options ask for."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.json").write_bytes(report.encode())
        row = {"scenario": report.scenario, "seed": report.seed} | figures_of(report)
        write_csv(out / "report.csv", [row])
    if trace is not None:
        write_trace(trace, scenario, fleet.world)
    if plots is not None:
        from dsd_sim.studies.plots import plot_run  # loads matplotlib

        plots.mkdir(parents=True, exist_ok=True)
        plot_run(scenario, fleet.world, plots)
    end_ms = cut_ms(fleet.world)
    if end_ms is not None:
        print(f"trace and plots over time end at {end_ms / 1000:,.1f} s, where the log was full", file=sys.stderr)


if __name__ == "__main__":
    app()
