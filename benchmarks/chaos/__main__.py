"""Faults under load: python -m benchmarks.chaos --help.

A system of processes of its own serves requests while one fault after another hits it. The run fails if a text differs
from the one of an undisturbed run, if a request fails whose gateway was not killed, if an answer waits too
long although one fault hits at a time, or if anything is left.
"""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.chaos.faults import KINDS, FaultPlan, find_faketime
from benchmarks.chaos.load import Load
from benchmarks.chaos.questions import Lengths
from benchmarks.chaos.records import ChaosResult
from benchmarks.chaos.report import as_markdown
from benchmarks.chaos.run import run
from benchmarks.chaos.system import ChaosPlan
from benchmarks.harness.cell import exit_on_signals
from benchmarks.harness.files import ROOT, read_result, write_result
from services.local.engine import EngineName, EngineRefused, verifier_engine
from shared.runtime.home import default_models_dir

FOLDER = ROOT / "docs" / "reports" / "chaos"
NUM_REQUESTS = {EngineName.TORCH: 1000, EngineName.VLLM: 300}

console = Console(stderr=True, soft_wrap=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    requests: Annotated[int, typer.Option(min=0, help="Requests under faults; 0: 1000, on vLLM 300.")] = 0,
    clients: Annotated[int, typer.Option(min=1, help="Concurrent clients.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of requests and faults.")] = 1,
    faults: Annotated[str, typer.Option(help=f"Kinds of faults, separated by commas: {', '.join(KINDS)}.")] = ",".join(
        KINDS
    ),
    period_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two faults.")] = 2.0,
    max_faults: Annotated[int, typer.Option(min=0, help="Most faults; 0: no limit.")] = 0,
    longest_prompt: Annotated[int, typer.Option(min=20, help="Tokens of the longest prompt.")] = 1500,
    longest_answer: Annotated[int, typer.Option(min=1, help="Tokens of the longest answer.")] = 24,
    engine: Annotated[
        EngineName, typer.Option(envvar="DSD_ENGINE", help="Engine of the verifiers.")
    ] = EngineName.TORCH,
    verifier_python: Annotated[
        Path | None,
        typer.Option(envvar="DSD_VERIFIER_PYTHON", help="Python of the verifiers; default: one with the engine."),
    ] = None,
    single: Annotated[bool, typer.Option(help="One fault at a time, too.")] = True,
    rolling: Annotated[bool, typer.Option(help="Restart every service in turn at the end.")] = True,
    folder: Annotated[Path, typer.Option(help="Folder for the results.")] = FOLDER,
    logs: Annotated[Path | None, typer.Option(help="New folder for a copy of all logs.")] = None,
) -> None:
    """Runs the default pair under faults. Writes ENGINE.json, and every request in ENGINE-requests.json.

    Exits with status 1 after a violation.
    """
    if context.invoked_subcommand is not None:
        return
    kinds = [kind.strip() for kind in faults.split(",")]
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}", param_hint="--faults")
    exit_on_signals()
    try:
        plan = ChaosPlan(
            default_models_dir(), engine=verifier_engine(engine, verifier_python), fake_clock=find_faketime()
        )
    except EngineRefused as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from error
    lengths = Lengths((20, longest_prompt), (max(1, longest_answer // 3), longest_answer))
    load = Load(
        requests or NUM_REQUESTS[engine],
        clients,
        seed,
        lengths,
        FaultPlan(kinds, seed, period_s, max_faults or math.inf),
        has_single=single,
        has_rolling=rolling,
    )
    result, records = asyncio.run(run(plan, load, _tell, logs))
    write_result(folder / f"{engine}.json", result)
    write_result(folder / f"{engine}-requests.json", records)
    print(as_markdown(result))
    if result.violations:
        raise typer.Exit(1)


@app.command()
def show(file: Annotated[Path, typer.Argument(help="A result.")]) -> None:
    """Prints a result as Markdown."""
    print(as_markdown(read_result(file, ChaosResult)))


def _tell(text: str) -> None:
    console.print(text, markup=False, highlight=False)


if __name__ == "__main__":
    app()
