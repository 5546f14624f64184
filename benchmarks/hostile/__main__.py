"""Hostile clients and peers against a whole system: python -m benchmarks.hostile --help.

First hostile HTTP clients, then a hostile drafter, gateway, verifier and controller on the bus. Honest clients ask all
the time. Exits with status 1 if anything happened that must not.
"""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.harness.cell import exit_on_signals
from benchmarks.harness.files import ROOT, read_result, write_result
from benchmarks.hostile.records import HostileResult
from benchmarks.hostile.report import as_markdown
from benchmarks.hostile.run import HostilePlan, run
from shared.runtime.home import default_models_dir

OUTPUT = ROOT / "docs" / "reports" / "hostile.json"

console = Console(stderr=True, soft_wrap=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    only: Annotated[str, typer.Option(help="http, nats, or one role.")] = "",
    requests: Annotated[int, typer.Option(min=10, help="Hostile bodies.")] = 42_000,
    messages: Annotated[int, typer.Option(min=100, help="Hostile packets of all roles together.")] = 100_000,
    rate: Annotated[float, typer.Option(min=1, help="Hostile requests a second while TPOT is measured.")] = 20.0,
    message_rate: Annotated[float, typer.Option(min=1, help="Most hostile packets a second.")] = 500.0,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of the TPOT measurement; 0: none.")] = 40,
    seed: Annotated[int | None, typer.Option(help="Repeats a run; by default a random one, which is printed.")] = None,
    output: Annotated[Path, typer.Option(help="File for the result.")] = OUTPUT,
) -> None:
    """Attacks the default pair's system in all ways that clients and holders of NATS keys have.

    Writes the result, and prints it. Exits with status 1 after a violation.
    """
    if context.invoked_subcommand is not None:
        return
    exit_on_signals()
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    _tell(f"seed {seed}")
    plan = HostilePlan(only, requests, messages, rate, message_rate, rounds, seed)
    result = asyncio.run(run(default_models_dir(), plan, _tell))
    write_result(output, result)
    print(as_markdown(result))
    raise typer.Exit(bool(result.violations))


@app.command()
def show(file: Annotated[Path, typer.Argument(help="A result.")]) -> None:
    """Prints a result as Markdown."""
    print(as_markdown(read_result(file, HostileResult)))


def _tell(text: str) -> None:
    console.print(text, markup=False, highlight=False)


if __name__ == "__main__":
    app()
