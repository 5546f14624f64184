"""Compares serving modes on this machine with the default pair: `make bench`, or python -m benchmarks.policies --help.

Invariant: each finished cell has its own file and is measured again only if its figures are void or come from other
code, models, prompts or settings. findings.json holds the last findings of every cell, from which the report is made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.console import Console

from benchmarks.harness.cell import exit_on_signals
from benchmarks.harness.cell_plan import StandinPlan
from benchmarks.harness.files import REPORTS, read_result, write_result
from benchmarks.harness.origin import Origin
from benchmarks.harness.prompts import DEFAULT_PROMPTS
from benchmarks.harness.standin import StandinKind
from benchmarks.policies.findings import CellFinding, find
from benchmarks.policies.measure import CellResult, RunSettings, run_cell
from benchmarks.policies.plan import TARGET_ONLY, CellSpec, full_plan, policy_plan, quick_plan, small_plan
from benchmarks.policies.report import markdown, plot_speeds
from model_zoo.prompt_file import read_prompts
from shared.runtime.home import default_models_dir

OVERHEAD_S = 45.0  # to start, warm up and stop a cell

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def matches(result: CellResult, spec: CellSpec, settings: RunSettings) -> bool:
    """Whether the figures count and come from this spec and these settings."""
    measured = (result.modes, result.max_tokens, result.standin, result.inputs)
    return not result.complaints and measured == (
        [mode.name for mode in spec.modes],
        settings.max_tokens,
        settings.kind_of_models,
        settings.inputs,
    )


def unfinished(plan: Sequence[CellSpec], folder: Path, settings: RunSettings) -> list[CellSpec]:
    """The cells of the plan without a valid result."""

    def is_finished(spec: CellSpec) -> bool:
        path = folder / f"{spec.name}.json"
        return path.is_file() and matches(read_result(path, CellResult), spec, settings)

    return [spec for spec in plan if not is_finished(spec)]


def selected(plan: Sequence[CellSpec], parts: Sequence[str]) -> set[str]:
    """Names of the cells that --only selects. A part of a name selects all cells that contain it."""
    names = [spec.name for spec in plan]
    if unknown := [part for part in parts if not any(part in name for name in names)]:
        raise typer.BadParameter(f"--only {unknown[0]} matches no cell; cells: {', '.join(names)}")
    return {name for name in names for part in parts if part == name or (part in name and part not in names)}


def with_modes(spec: CellSpec, names: Sequence[str]) -> CellSpec:
    """The cell with target-only and the named modes, without a race."""
    known = {mode.name: mode for mode in spec.modes}
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"--mode {unknown[0]} is not in {spec.name}; modes: {', '.join(known)}")
    modes = tuple(each for each in spec.modes if each == TARGET_ONLY or each.name in names)
    return replace(spec, modes=modes, is_race=False)


async def run_all(specs: Sequence[CellSpec], settings: RunSettings, folder: Path, budget_s: float) -> None:
    """Measures cells in order. Time that a cell leaves unused goes to the others."""
    ends_at = time.monotonic() + budget_s
    for number, spec in enumerate(specs):
        left = specs[number:]
        share = spec.weight / sum(each.weight for each in left)
        seconds = max(0.0, share * (ends_at - time.monotonic() - OVERHEAD_S * len(left)))
        console.print(f"{spec}: {seconds:.0f} s of rounds, {len(left) - 1} cells left", highlight=False)
        origin = Origin.here("benchmarks.policies")
        result = await run_cell(spec, replace(settings, seconds=seconds), origin, console.print)
        for complaint in result.complaints[:5]:
            console.print(f"void: {complaint}", style="red", highlight=False)
        write_result(folder / f"{spec.name}.json", result)


def write_report(plan: Sequence[CellSpec], folder: Path) -> Path:
    """Writes findings.json, report.md and plots of the measured cells of a plan; returns the report's path."""
    known = read_findings(folder)
    paths = {spec.name: folder / f"{spec.name}.json" for spec in plan}
    known |= {name: find(read_result(path, CellResult)) for name, path in paths.items() if path.is_file()}
    findings = [known[name] for name in paths if name in known]
    if not findings:
        raise typer.BadParameter(f"{folder} holds no measured cell")
    write_result(folder / "findings.json", findings)
    (folder / "report.md").write_text(markdown(findings, plot_speeds(findings, folder)), encoding="utf-8")
    return folder / "report.md"


def read_findings(folder: Path) -> dict[str, CellFinding]:
    """The stored findings by cell name."""
    path = folder / "findings.json"
    if not path.is_file():
        return {}
    try:
        found = read_result(path, list[CellFinding])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return {each.name: each for each in found}


@app.command()
def main(
    quick: Annotated[bool, typer.Option("--quick", help="Measure two cells only.")] = False,
    policies: Annotated[bool, typer.Option("--policies", help="Compare window policies.")] = False,
    small: Annotated[str | None, typer.Option(help="Measure this small draft: distilled, or a folder.")] = None,
    budget_min: Annotated[float | None, typer.Option(min=1, help="Total minutes.", show_default="80 or 4.5")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder for results.", show_default="docs/reports/benchmarks")
    ] = None,
    prompts: Annotated[
        Path, typer.Option(help="JSONL file with prompts.", show_default="tests/data/prompts.jsonl")
    ] = DEFAULT_PROMPTS,
    max_tokens: Annotated[int, typer.Option(min=2, help="Maximum tokens of an answer.")] = 64,
    drafters: Annotated[int, typer.Option(min=1, max=16, help="Number of drafters, with --policies.")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="Only this cell, or cells whose names contain this.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="Only target-only and this mode; needs --folder.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of modes.")] = 1,
    standin_kind: Annotated[str | None, typer.Option(help="Stand-ins for both models: paced or replayed.")] = None,
    standin_profile: Annotated[Path | None, typer.Option(help="Profile of the stand-ins.")] = None,
    standin_recording: Annotated[Path | None, typer.Option(help="Recording for replayed stand-ins.")] = None,
    report_only: Annotated[bool, typer.Option("--report", help="Only write the report of finished cells.")] = False,
) -> None:
    """Compares serving modes cell by cell. Finished cells are kept."""
    exit_on_signals()
    if quick + policies + (small is not None) > 1:
        raise typer.BadParameter("use one of --quick, --policies and --small")
    if drafters > 1 and not policies:
        raise typer.BadParameter("--drafters needs --policies")
    plan = small_plan(small) if small else quick_plan() if quick else policy_plan(drafters) if policies else full_plan()
    names = selected(plan, only) if only else None
    asked = [spec for spec in plan if names is None or spec.name in names]
    if mode:
        if folder is None:
            raise typer.BadParameter("--mode needs --folder, so that partial cells do not replace whole ones")
        asked = plan = [with_modes(spec, mode) for spec in asked]
    standin = None
    if standin_kind is not None:
        if standin_profile is None or standin_kind not in get_args(StandinKind):
            raise typer.BadParameter("--standin-kind must be paced or replayed, and needs --standin-profile")
        standin = StandinPlan(cast(StandinKind, standin_kind), standin_profile, standin_recording)
    kind_of_plan = "small" if small else "quick" if quick else "policies" if policies else ""
    drafters_of_each = f"on{drafters}" if drafters > 1 else ""
    place = folder or REPORTS / kind_of_plan / drafters_of_each / ("stand-in" if standin else "")
    place.mkdir(parents=True, exist_ok=True)
    settings = RunSettings(
        default_models_dir(), read_prompts(prompts), max_tokens, seconds=0.0, seed=seed, standin=standin
    )
    read_findings(place)  # before anything is measured: the report is made from them too
    todo = [] if report_only else unfinished(asked, place, settings)
    console.print(f"{len(todo)} of {len(asked)} cells to measure", highlight=False)
    asyncio.run(run_all(todo, settings, place, 60 * (budget_min or (4.5 if quick else 80))))
    console.print(f"see {write_report(plan, place)}", highlight=False)


if __name__ == "__main__":
    app()
