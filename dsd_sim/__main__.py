"""python -m dsd_sim: runs scenarios in virtual time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dsd_sim.build import make_fleet
from dsd_sim.report import report_of, table_of
from dsd_sim.scenario import BadScenario, read_scenario

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """DSD-Sim: fleets of drafters and verifiers in virtual time."""


@app.command()
def run(
    scenario: Annotated[Path, typer.Argument(help="A scenario file (TOML).")],
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Runs one scenario and prints what it showed."""
    try:
        read = read_scenario(scenario)
        fleet = make_fleet(read, scenario.parent)
    except (BadScenario, OSError) as error:
        message = str(error)
        print(message if str(scenario) in message else f"{scenario}: {message}", file=sys.stderr)
        raise typer.Exit(2) from error
    fleet.run()
    report = report_of(read, fleet)
    if json:
        sys.stdout.write(report.encode().decode())
    else:
        Console().print(table_of(report))


if __name__ == "__main__":
    app()
