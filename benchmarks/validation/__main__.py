"""Compares DSD-Sim with the services: runs each case live, simulates it and reports the errors: make validate.

Invariant: each finished case has its own file and is run again only if its figures are void or come from other code or
models. The report shows all finished cases. Each call that runs a case makes its recordings anew.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.harness.cell import exit_on_sigterm
from benchmarks.harness.files import REPORTS, read_result, write_result
from benchmarks.harness.origin import Origin, digest_of
from benchmarks.validation.case_run import CaseResult, ValidationInputs, run_case
from benchmarks.validation.cases import CASES, DISTILLED_CASES, NUM_TOKENS, Case
from benchmarks.validation.record import JUDGED, OTHERS, record_all
from benchmarks.validation.report import markdown, summaries, table
from model_zoo.prompt_file import read_prompts
from shared.runtime.home import default_models_dir

FOLDER = REPORTS.parent / "validation"

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True, slots=True)
class ResultCode:
    """The part of a CaseResult that results of all versions of the code have."""

    code: str


def path_of(case: Case, folder: Path) -> Path:
    return folder / f"{case.name}.json"


def matches(result: CaseResult, case: Case, code: str, num_tokens: int = NUM_TOKENS) -> bool:
    """Whether a result is of this case and this code."""
    return (result.case, result.code, result.num_tokens) == (case, code, num_tokens)


def results_of(cases: Sequence[Case], folder: Path, code: str) -> list[CaseResult]:
    """Results of this code, void ones included. Those of other code may have another form and are not read."""
    paths = [path_of(case, folder) for case in cases]
    current = [path for path in paths if path.is_file() and read_result(path, ResultCode).code == code]
    found = [read_result(path, CaseResult) for path in current]
    asked = {case.name: case for case in cases}
    return [result for result in found if matches(result, asked[result.case.name], code)]


def unfinished(cases: Sequence[Case], folder: Path, code: str) -> list[Case]:
    """Cases without a valid result."""
    finished = {result.case.name for result in results_of(cases, folder, code) if not result.complaints}
    return [case for case in cases if case.name not in finished]


def run_all(cases: Sequence[Case], models: Path, folder: Path) -> None:
    """Runs cases in order. A failed case leaves no result, so the next call runs it again."""
    drafts = sorted({draft for case in cases for draft in case.drafts})
    with TemporaryDirectory(prefix="dsd-validate-") as place:
        console.print(f"recording {', '.join(drafts) or 'nothing'}", highlight=False)
        recordings = asyncio.run(record_all(drafts, Path(place), NUM_TOKENS))
        inputs = ValidationInputs(models, recordings, read_prompts(JUDGED), read_prompts(OTHERS), digest_of(models))
        for number, case in enumerate(cases, start=1):
            started = time.monotonic()
            console.print(f"{number} of {len(cases)}: {case.name}", highlight=False)
            try:
                result = run_case(case, inputs, Origin.here("benchmarks.validation"), _notify)
            except Exception:  # other cases can still run
                console.print(f"{case.name} failed:", style="red", highlight=False)
                console.print_exception()
                continue
            for complaint in result.complaints[:5]:
                console.print(f"void: {complaint}", style="red", highlight=False, markup=False)
            write_result(path_of(case, folder), result)
            console.print(f"{case.name}: {time.monotonic() - started:.0f} s in all", highlight=False)


def _notify(line: str) -> None:
    console.print(line, highlight=False, markup=False)


def write_report(known: Sequence[Case], results: Sequence[CaseResult], folder: Path) -> Path:
    """Writes report.md; returns its path. known: all cases of the kind."""
    path = folder / "report.md"
    names = {result.case.name for result in results}
    missing = [case.name for case in known if case.name not in names]
    path.write_text(markdown(results, missing, results[-1].origin), encoding="utf-8")
    return path


@app.command()
def main(
    only: Annotated[list[str] | None, typer.Option(help="Only cases whose names contain this.")] = None,
    distilled: Annotated[bool, typer.Option("--distilled", help="The cases of the distilled draft instead.")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Folder for results.", show_default="docs/reports/validation")
    ] = None,
    report_only: Annotated[bool, typer.Option("--report", help="Only write the report of finished cases.")] = False,
) -> None:
    """Compares the simulator with the services, case by case. Finished cases are kept.

    Exits with status 1 if a case has no valid result or an error exceeds its limit.
    """
    known = DISTILLED_CASES if distilled else CASES
    cases = [case for case in known if not only or any(part in case.name for part in only)]
    if not cases:
        raise typer.BadParameter(
            f"matches no case; cases: {', '.join(case.name for case in known)}", param_hint="--only"
        )
    exit_on_sigterm()
    folder = folder or (FOLDER / "distilled" if distilled else FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    models = default_models_dir()
    if not report_only:
        subprocess.run([sys.executable, "-m", "model_zoo", "prepare"], check=True)
    code = digest_of(models)
    todo = [] if report_only else unfinished(cases, folder, code)
    console.print(f"{len(todo)} of {len(cases)} cases to run", highlight=False)
    if todo:
        run_all(todo, models, folder)
    results = results_of(cases, folder, code)
    if not results:
        console.print("no case has a result", style="red")
        raise typer.Exit(1)
    console.print(f"see {write_report(known, results_of(known, folder, code), folder)}", highlight=False)
    Console().print(table(results))
    is_whole = len(results) == len(cases) and not any(result.complaints for result in results)
    if not is_whole or not all(summary.holds for summary in summaries(results)):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
