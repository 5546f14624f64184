"""Compares DSD with llama.cpp, vLLM and transformers: `make peers`, or python -m benchmarks.peers --help.

Invariant: a cell counts if all its rounds come from the same code, models, prompts and choices, and nothing else
computed meanwhile. The same command continues where it was stopped. The report is made from the cells alone.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from benchmarks.harness.cell import exit_on_signals
from benchmarks.harness.files import ROOT
from benchmarks.harness.origin import Origin, digest_of, digest_of_folder
from benchmarks.peers import llama_cpp, serving
from benchmarks.peers.cells import LONG, MIDDLE, SHORT, Cell, full_plan, plan_table
from benchmarks.peers.measuring import Run, measure_all
from benchmarks.peers.prompts import prompts_of
from benchmarks.peers.report import markdown, read_causes
from benchmarks.peers.results import read_cell
from benchmarks.peers.serving import has_distilled, has_room
from benchmarks.peers.systems import ALL_GIB, LLAMA, LLAMA_DRAFT, Choice, System, systems
from services.gateway.text.tokenizer import load_tokenizer
from services.local.engine import EngineRefused
from shared.runtime.home import default_models_dir, home
from shared.runtime.machine import describe_machine, fast_dtype

FOLDER = ROOT / "docs" / "reports" / "peers"
BENCHMARKS = tuple(f"benchmarks/{name}" for name in ("harness", "load", "peers"))
CODE = ("awc", *BENCHMARKS, "client", "services", "shared")  # that figures depend on

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def notify(line: str) -> None:
    console.print(line, highlight=False, markup=False)


def write_report(plan: Sequence[Cell], folder: Path) -> Path:
    """Beside the folder of the cells, under its name."""
    results = [found for cell in plan if (found := read_cell(cell, folder)) is not None]
    path = folder.with_name(f"{folder.name}.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(markdown(plan, results, read_causes(folder), folder.name), encoding="utf-8")
    return path


def chosen(plan: Sequence[Cell], names: Sequence[str]) -> list[Cell]:
    """The cells of these names; all without names."""
    if unknown := set(names) - {cell.name for cell in plan}:
        known = ", ".join(cell.name for cell in plan)
        raise typer.BadParameter(f"--only {unknown.pop()} is no cell; cells: {known}")
    return [cell for cell in plan if not names or cell.name in names]


def among(all_systems: Sequence[System], names: Sequence[str]) -> list[System]:
    """The systems of these names; all without names."""
    if unknown := set(names) - {system.name for system in all_systems}:
        known = ", ".join(system.name for system in all_systems)
        raise typer.BadParameter(f"--system {unknown.pop()} is none; systems: {known}")
    return [system for system in all_systems if not names or system.name in names]


def fresh_logs() -> Path:
    """The folder for the logs of this run's processes, which the next run empties."""
    folder = home() / "peers" / "logs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@app.command()
def main(
    show_plan: Annotated[bool, typer.Option("--plan", help="Only print the cells and their estimated time.")] = False,
    report_only: Annotated[bool, typer.Option("--report", help="Only write the report of measured cells.")] = False,
    budget_min: Annotated[float, typer.Option(min=1, help="Total minutes.")] = 150,
    only: Annotated[list[str] | None, typer.Option(help="Only this cell; repeat it.")] = None,
    system: Annotated[list[str] | None, typer.Option(help="Only this system; repeat it. Needs --folder.")] = None,
    vllm_python: Annotated[
        Path | None, typer.Option(help="Python that has vLLM.", show_default=".venv-vllm/bin/python")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Folder of the cells.", show_default="docs/reports/peers")] = FOLDER,
    seed: Annotated[int, typer.Option(help="Seed of prompts and orders.")] = 1,
    busy: Annotated[bool, typer.Option("--busy", help="Try it while other programs compute: cells are void.")] = False,
) -> None:
    """Compares DSD with its peers cell by cell. Finished cells are kept."""
    exit_on_signals()
    if (system or busy) and folder == FOLDER:
        raise typer.BadParameter("--system and --busy need --folder, so that trials do not replace the report")
    models = default_models_dir()
    choice = Choice(has_distilled(models), bool(system) or has_room(), fast_dtype())
    asked, plan = among(systems(choice), system or []), full_plan()
    todo = chosen(plan, only or [])
    if show_plan:
        print(plan_table(todo, asked))
        return
    if not report_only:
        if any(each.name in (LLAMA, LLAMA_DRAFT) for each in asked) and todo:
            _build_llama()
        if not choice.has_room:
            notify(f"the memory is less than {ALL_GIB} GiB: the system that is not counted is left out")
        if not choice.has_distilled:
            notify("there is no distilled draft (`make draft`): its systems are left out")
        try:
            start = serving.starting(models, vllm_python, choice, fresh_logs(), notify)
        except EngineRefused as error:
            raise typer.BadParameter(f"{error}", param_hint="--vllm-python") from error
    try:
        if not report_only:
            asyncio.run(_measure(start, asked, todo, folder, seed, 60 * budget_min, may_be_busy=busy))
    finally:
        notify(f"see {write_report(plan, folder)}")


def _build_llama() -> None:
    """Before the digest of its folder, and outside the budget."""
    try:
        llama_cpp.build(notify)
    except llama_cpp.NoLlamaCpp as error:
        notify(str(error))
        raise typer.Exit(1) from error


async def _measure(
    start: serving.Starting,
    asked: Sequence[System],
    plan: Sequence[Cell],
    folder: Path,
    seed: int,
    budget_s: float,
    *,
    may_be_busy: bool,
) -> None:
    tokenizer = load_tokenizer(start.models / "target")
    prompts = {length: prompts_of(length, tokenizer, seed) for length in (SHORT, MIDDLE, LONG)}
    versions = await serving.versions(start)
    more = (sorted(prompts.items()), versions, start.choice, seed, describe_machine())
    made = (start.models / "draft-distilled", llama_cpp.place())  # here, so no commit tells of them
    inputs = digest_of(start.models, msgspec.json.encode(more), *map(digest_of_folder, made), packages=CODE)
    origin = Origin.here("benchmarks.peers")
    run = Run(asked, prompts, versions, inputs, origin, folder, seed, may_be_busy)
    todo = run.unfinished(plan)
    notify(f"{len(todo)} of {len(plan)} cells to measure")
    if todo:
        await measure_all(run, start, todo, budget_s)


if __name__ == "__main__":
    app()
