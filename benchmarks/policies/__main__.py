"""Measures DSD on this machine with the default pair: `make bench`, `make bench-quick`, or this module by hand.

Invariant: a finished cell stands in a file of its own and is not measured again, unless its figures are void or follow
from other code, models, prompts or settings. findings.json has what the last measurement of every cell came to, and the
report is made of it; a run of some cells changes what is told of these only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from benchmarks.harness.cell_plan import Standin
from benchmarks.harness.origin import Origin
from benchmarks.harness.prompts import OWN
from benchmarks.harness.signals import exit_on_sigterm
from benchmarks.policies.findings import CellFinding, find
from benchmarks.policies.measure import CellResult, Effort, read_result, run_cell, write_result
from benchmarks.policies.plan import TARGET_ONLY, CellSpec, full_plan, policy_plan, quick_plan
from benchmarks.policies.report import markdown, plot_speeds
from benchmarks.standins.settings import Kind
from model_zoo.prompt_file import read_prompts
from shared.runtime.home import default_models_dir

FOLDER = Path(__file__).parents[2] / "docs" / "reports" / "benchmarks"
OVERHEAD_S = 45.0  # of a cell: starting, warming up, stopping

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def matches(result: CellResult, spec: CellSpec, effort: Effort) -> bool:
    """Whether a finished cell is the one asked for, and its figures count."""
    measured = (result.modes, result.max_tokens, result.standin, result.inputs)
    return not result.complaints and measured == (
        [mode.name for mode in spec.modes],
        effort.max_tokens,
        effort.kind_of_models,
        effort.inputs,
    )


def unfinished(plan: Sequence[CellSpec], folder: Path, effort: Effort) -> list[CellSpec]:
    """The cells of the plan without a result, or with one of other settings."""

    def is_finished(spec: CellSpec) -> bool:
        path = folder / f"{spec.name}.json"
        return path.is_file() and matches(read_result(path), spec, effort)

    return [spec for spec in plan if not is_finished(spec)]


def named(plan: Sequence[CellSpec], parts: Sequence[str]) -> set[str]:
    """Names of cells; part of a name stands for all that have it."""
    names = [spec.name for spec in plan]
    if unknown := [part for part in parts if not any(part in name for name in names)]:
        raise typer.BadParameter(f"--only {unknown[0]} is part of no cell: {', '.join(names)}")
    return {name for name in names for part in parts if part == name or (part in name and part not in names)}


def with_modes(spec: CellSpec, names: Sequence[str]) -> CellSpec:
    """A cell with target-only and the modes of these names."""
    known = {mode.name: mode for mode in spec.modes}
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"--mode {unknown[0]} is none of {spec.name}'s: {', '.join(known)}")
    return replace(spec, modes=tuple(each for each in spec.modes if each == TARGET_ONLY or each.name in names))


async def run_all(specs: Sequence[CellSpec], effort: Effort, folder: Path, budget_s: float) -> None:
    """Measures cells in order; what one doesn't use of its share of the time is there for the others."""
    ends_at = time.monotonic() + budget_s
    for number, spec in enumerate(specs):
        left = specs[number:]
        share = spec.weight / sum(each.weight for each in left)
        seconds = max(0.0, share * (ends_at - time.monotonic() - OVERHEAD_S * len(left)))
        console.print(f"{spec}: {seconds:.0f} s of rounds, {len(left) - 1} cells behind it", highlight=False)
        origin = Origin.here("benchmarks.policies")
        result = await run_cell(spec, replace(effort, seconds=seconds), origin, console.print)
        for complaint in result.complaints[:5]:
            console.print(f"void: {complaint}", style="red", highlight=False)
        write_result(folder / f"{spec.name}.json", result)


def report(plan: Sequence[CellSpec], folder: Path) -> Path:
    """Writes findings.json, report.md and plots of all cells of a plan that were measured; the report's place."""
    known = read_findings(folder)
    paths = {spec.name: folder / f"{spec.name}.json" for spec in plan}
    known |= {name: find(read_result(path)) for name, path in paths.items() if path.is_file()}
    findings = [known[name] for name in paths if name in known]
    if not findings:
        raise typer.BadParameter(f"{folder} has no cell to report on")
    (folder / "findings.json").write_bytes(msgspec.json.format(msgspec.json.encode(findings), indent=1))
    (folder / "report.md").write_text(markdown(findings, plot_speeds(findings, folder)), encoding="utf-8")
    return folder / "report.md"


def read_findings(folder: Path) -> dict[str, CellFinding]:
    """What is told of each cell, by its name."""
    path = folder / "findings.json"
    if not path.is_file():
        return {}
    try:
        found = msgspec.json.decode(path.read_bytes(), type=list[CellFinding])
    except msgspec.DecodeError as error:
        raise typer.BadParameter(f"{path} has no findings: {error}") from error
    return {each.name: each for each in found}


@app.command()
def main(
    quick: Annotated[bool, typer.Option("--quick", help="Two cells instead of all.")] = False,
    policies: Annotated[bool, typer.Option("--policies", help="Window policies against each other.")] = False,
    budget_min: Annotated[float | None, typer.Option(min=1, help="Minutes in all.", show_default="80 or 4.5")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where results go.", show_default="docs/reports/benchmarks")
    ] = None,
    prompts: Annotated[Path, typer.Option(help="JSONL file with prompts.", show_default="our own")] = OWN,
    max_tokens: Annotated[int, typer.Option(min=2, help="Most tokens of an answer.")] = 64,
    drafters: Annotated[int, typer.Option(min=1, max=16, help="Drafters, with --policies.")] = 1,
    only: Annotated[list[str] | None, typer.Option(help="Only this cell, or those with this in their names.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="Only target-only and these; needs --folder.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of modes.")] = 1,
    standin_kind: Annotated[str | None, typer.Option(help="paced or replayed: stand-ins for both models.")] = None,
    standin_profile: Annotated[Path | None, typer.Option(help="Profile of the stand-ins.")] = None,
    standin_recording: Annotated[Path | None, typer.Option(help="Recording to replay.")] = None,
    report_only: Annotated[bool, typer.Option("--report", help="Only write the report of what is there.")] = False,
) -> None:
    """Compares ways of serving, cell by cell; finished cells are kept."""
    exit_on_sigterm()
    if quick and policies:
        raise typer.BadParameter("--quick and --policies can't both be given")
    if drafters > 1 and not policies:
        raise typer.BadParameter("--drafters needs --policies")
    plan = quick_plan() if quick else policy_plan(drafters) if policies else full_plan()
    names = named(plan, only) if only else None
    asked = [spec for spec in plan if names is None or spec.name in names]
    if mode:
        if folder is None:
            raise typer.BadParameter("--mode needs --folder, so that whole cells are not replaced by parts")
        asked = plan = [with_modes(spec, mode) for spec in asked]
    standin = None
    if standin_kind is not None:
        if standin_profile is None or standin_kind not in ("paced", "replayed"):
            raise typer.BadParameter("--standin-kind is paced or replayed, and needs --standin-profile")
        kind: Kind = "paced" if standin_kind == "paced" else "replayed"
        standin = Standin(kind, standin_profile, standin_recording)
    kind_of_plan = "quick" if quick else "policies" if policies else ""
    drafters_of_each = f"on{drafters}" if drafters > 1 else ""
    place = folder or FOLDER / kind_of_plan / drafters_of_each / ("stand-in" if standin else "")
    place.mkdir(parents=True, exist_ok=True)
    models = default_models_dir()
    effort = Effort(models, read_prompts(prompts), max_tokens, seconds=0.0, seed=seed, standin=standin)
    todo = [] if report_only else unfinished(asked, place, effort)
    console.print(f"{len(todo)} of {len(asked)} cells to measure", highlight=False)
    asyncio.run(run_all(todo, effort, place, 60 * (budget_min or (4.5 if quick else 80))))
    console.print(f"see {report(plan, place)}", highlight=False)


if __name__ == "__main__":
    app()
