"""Compares DSD-Sim with the services: make validate.

`calibrate` measures each system once. `predict` runs cases that the calibration did not contain, and simulates them
from its profiles.

Invariant: each finished case has its own file and is run again only if its figures are void or come from other services
or models. The report simulates all finished cases anew.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.harness.cell import exit_on_signals
from benchmarks.validation.cases import CASES, DEVELOPMENT, ROUNDS, SYSTEMS, Case, ValidationSystem
from benchmarks.validation.prediction import predictions_of
from benchmarks.validation.prompts import is_recorded, recording_of
from benchmarks.validation.report import markdown, summaries, table
from benchmarks.validation.rounds import calibrate_system, console, notify, run_round
from benchmarks.validation.store import FOLDER, ORIGIN, WORK, Store, code_of
from services.local.engine import EngineName, EngineRefused, verifier_engine
from services.local.pair import DISTILLED
from shared.runtime.home import default_models_dir

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Names = Annotated[list[str] | None, typer.Option("--system", help=f"Only these systems: {', '.join(SYSTEMS)}.")]
Folder = Annotated[Path | None, typer.Option(help="Folder for results.", show_default="docs/reports/validation")]
Python = Annotated[
    Path | None, typer.Option("--verifier-python", help="Python with vLLM; default: that of `make vllm`.")
]


def usable(
    names: Sequence[str] | None, python: Path | None, models: Path
) -> tuple[list[ValidationSystem], Path | None]:
    """The systems that this machine can run, and the Python of vLLM."""
    systems = [system for name, system in SYSTEMS.items() if not names or name in names]
    try:
        vllm = verifier_engine(EngineName.VLLM, python).python
    except EngineRefused as refused:
        console.print(f"without the system vllm: {refused}", highlight=False, markup=False)
        systems, vllm = [system for system in systems if system.engine is not EngineName.VLLM], None
    if not (models / f"draft-{DISTILLED}").is_dir():
        console.print("without the systems that have the distilled draft, which `make draft` makes", highlight=False)
        systems = [system for system in systems if DISTILLED not in system.drafts]
    return systems, vllm


def prepare_pair() -> None:
    """Makes the default pair if it is missing."""
    subprocess.run([sys.executable, "-m", "model_zoo", "prepare"], check=True)


def record_missing(systems: Sequence[ValidationSystem], profiles: Path) -> None:
    """Makes the recordings that are missing or of other drafts."""
    pairs = [(system, draft) for system in systems if not system.is_replayed for draft in system.drafts]
    for path, draft in {recording_of(system, draft, profiles): draft for system, draft in pairs}.items():
        if not is_recorded(draft, default_models_dir(), path):
            notify(f"recording the {draft} draft")
            subprocess.run([sys.executable, "-m", "benchmarks.validation.record", draft, str(path)], check=True)


# --- commands ---------------------------------------------------------------------------------------------------------


@app.command()
def calibrate(
    system: Names = None,
    folder: Folder = None,
    verifier_python: Python = None,
    refit: Annotated[bool, typer.Option("--refit", help="Only fit the kept measurements again.")] = False,
) -> None:
    """Measures passes, draft steps, messages and requests of each system, and writes profiles for DSD-Sim."""
    exit_on_signals()
    if not refit:
        prepare_pair()
    models = default_models_dir()
    systems, python = usable(system, verifier_python, models)
    store = Store(folder or FOLDER, WORK, code_of(models))
    if not refit:
        record_missing(systems, store.profiles)
    for each in systems:
        if refit:
            store.refit(each)
        else:
            store.write_profiles(each, calibrate_system(each, python))


@app.command()
def predict(
    only: Annotated[list[str] | None, typer.Option(help="Only cases whose names contain this.")] = None,
    system: Names = None,
    folder: Folder = None,
    verifier_python: Python = None,
    development: Annotated[bool, typer.Option("--development", help="The cases of development instead.")] = False,
    report_only: Annotated[bool, typer.Option("--report", help="Only simulate and report finished cases.")] = False,
) -> None:
    """Runs the cases live, predicts them from the profiles, and reports the errors. Finished cases are kept.

    Each system runs in rounds, and each round has a share of every case. It also calibrates systems without a profile,
    or without a result of this code. Exits with status 1 if a case has no valid result or an error exceeds its limit.
    """
    exit_on_signals()
    known = DEVELOPMENT if development else CASES
    cases = [case for case in known if not only or any(part in case.name for part in only)]
    if not cases:
        names = ", ".join(case.name for case in known)
        raise typer.BadParameter(f"matches no case; cases: {names}", param_hint="--only")
    if not report_only:
        prepare_pair()
    store = Store(folder or FOLDER, WORK, code_of(default_models_dir()))
    if not report_only:
        _run_unfinished(cases, system, verifier_python, store)
    found = predictions_of(store.results(known), store.read_profiles(), store.profiles)
    if not found:
        console.print("no case has a result", style="red")
        raise typer.Exit(1)
    reported = {each.result.case.name for each in found}
    missing = [case.name for case in known if case.name not in reported]
    path = store.folder / ("development.md" if development else "report.md")
    path.write_text(markdown(found, missing, ORIGIN), encoding="utf-8")
    console.print(f"see {path}", highlight=False)
    Console().print(table(found))
    if missing or any(each.result.complaints for each in found) or not all(each.holds for each in summaries(found)):
        raise typer.Exit(1)


def _run_unfinished(cases: Sequence[Case], names: Sequence[str] | None, python: Path | None, store: Store) -> None:
    systems, vllm = usable(names, python, default_models_dir())
    todo = {each: [case for case in store.unfinished(cases) if case.system == each.name] for each in systems}
    todo = {each: unfinished for each, unfinished in todo.items() if unfinished}
    record_missing(list(todo), store.profiles)
    calibrated = [each for each in todo if store.needs_calibration(each)]
    for number in range(ROUNDS):
        for each, unfinished in todo.items():
            run_round(each, unfinished, number, vllm, store, calibrates=each in calibrated)
            if number == ROUNDS - 1:
                store.finish(each, unfinished)


if __name__ == "__main__":
    app()
