"""Is DSD-Sim right? Runs the services for real, simulates the same, and tells the errors: make validate.

Invariant: a finished case stands in a file of its own and is not run again, unless its figures are void; the report is
made of what is there. Recordings are made anew by every call that runs a case.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from benchmarks.harness.origin import ROOT, Origin, digest_of
from benchmarks.harness.signals import exit_on_sigterm
from benchmarks.validation.case_run import CaseResult, Effort, code_of, read_result, run_case
from benchmarks.validation.cases import CASES, NUM_TOKENS, Case
from benchmarks.validation.record import JUDGED, OTHERS, record_all
from benchmarks.validation.report import markdown, summaries, table
from model_zoo.prompt_file import read_prompts
from shared.runtime.home import default_models_dir

FOLDER = ROOT / "docs" / "reports" / "validation"

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def path_of(case: Case, folder: Path) -> Path:
    return folder / f"{case.name}.json"


def matches(result: CaseResult, case: Case, code: str, num_tokens: int = NUM_TOKENS) -> bool:
    """Whether a result is of the case asked for, and of this code."""
    return (result.case, result.code, result.num_tokens) == (case, code, num_tokens)


def results_of(cases: Sequence[Case], folder: Path, code: str) -> list[CaseResult]:
    """Those that are there, void ones too. What other code wrote may have another form, and is not read."""
    paths = [path_of(case, folder) for case in cases]
    found = [read_result(path) for path in paths if path.is_file() and code_of(path) == code]
    asked = {case.name: case for case in cases}
    return [result for result in found if matches(result, asked[result.case.name], code)]


def unfinished(cases: Sequence[Case], folder: Path, code: str) -> list[Case]:
    """Those without a result that counts."""
    finished = {result.case.name for result in results_of(cases, folder, code) if not result.complaints}
    return [case for case in cases if case.name not in finished]


def write_result(path: Path, result: CaseResult) -> None:
    """Whole or not at all."""
    unfinished_file = path.with_suffix(".part")
    unfinished_file.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    unfinished_file.replace(path)


def run_all(cases: Sequence[Case], models: Path, folder: Path) -> None:
    """One after the other; what fails is told, and is there to be run again."""
    drafts = sorted({draft for case in cases for draft in case.drafts})
    with TemporaryDirectory(prefix="dsd-validate-") as place:
        console.print(f"recording {', '.join(drafts) or 'nothing'}", highlight=False)
        recordings = asyncio.run(record_all(drafts, Path(place), NUM_TOKENS))
        effort = Effort(models, recordings, read_prompts(JUDGED), read_prompts(OTHERS), digest_of(models))
        for number, case in enumerate(cases, start=1):
            started = time.monotonic()
            console.print(f"{number} of {len(cases)}: {case.name}", highlight=False)
            try:
                result = run_case(case, effort, Origin.here("benchmarks.validation"), _notify)
            except Exception:  # the others can still be run
                console.print(f"{case.name} failed:", style="red", highlight=False)
                console.print_exception()
                continue
            for complaint in result.complaints[:5]:
                console.print(f"void: {complaint}", style="red", highlight=False, markup=False)
            write_result(path_of(case, folder), result)
            console.print(f"{case.name}: {time.monotonic() - started:.0f} s in all", highlight=False)


def _notify(line: str) -> None:
    console.print(line, highlight=False, markup=False)


def write_report(results: Sequence[CaseResult], folder: Path) -> Path:
    """Writes report.md; its place."""
    path = folder / "report.md"
    names = {result.case.name for result in results}
    missing = [case.name for case in CASES if case.name not in names]
    path.write_text(markdown(results, missing, results[-1].origin), encoding="utf-8")
    return path


@app.command()
def main(
    only: Annotated[list[str] | None, typer.Option(help="Only cases whose names have this part.")] = None,
    folder: Annotated[Path, typer.Option(help="Where results go.")] = FOLDER,
    report_only: Annotated[bool, typer.Option("--report", help="Only write the report of what is there.")] = False,
) -> None:
    """Compares the simulator with the services, case by case; finished cases are kept.

    Exit status 1 where a case has no figures that count, or an error is above its limit.
    """
    cases = [case for case in CASES if not only or any(part in case.name for part in only)]
    if not cases:
        raise typer.BadParameter(f"no case is named so: {', '.join(case.name for case in CASES)}", param_hint="--only")
    exit_on_sigterm()
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
    console.print(f"see {write_report(results_of(CASES, folder, code), folder)}", highlight=False)
    Console().print(table(results))
    is_whole = len(results) == len(cases) and not any(result.complaints for result in results)
    if not is_whole or not all(summary.holds for summary in summaries(results)):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
