"""Compares DSD-Sim with the services: make validate.

`calibrate` measures each system once. `predict` runs cases that the calibration did not contain, and simulates them
from its profiles.

Invariant: each finished case has its own file and is run again only if its figures are void or come from other services
or models. The report simulates all finished cases anew.
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

from benchmarks.harness.cell import exit_on_signals
from benchmarks.harness.files import REPORTS, ROOT, read_result, write_result
from benchmarks.harness.origin import Origin, digest_of, digest_of_folder
from benchmarks.validation.calibration import CalibrationPhase, profiles_of
from benchmarks.validation.cases import (
    CASES,
    DEVELOPMENT,
    SYSTEMS,
    Case,
    ValidationSystem,
    calibration_of,
    target_only_beside,
)
from benchmarks.validation.live import LiveSystem, Phase, num_keys, started
from benchmarks.validation.prediction import predictions_of
from benchmarks.validation.prompts import CALIBRATING, is_recorded, prompts_of, recording_of
from benchmarks.validation.report import markdown, summaries, table
from benchmarks.validation.results import CaseResult, TargetOnlyRun, drift_of, figures_of, unsteady
from model_zoo.prompt_file import read_prompts
from services.local.engine import EngineName, EngineRefused, verifier_engine
from services.local.pair import DISTILLED
from shared.data.profiles import Profile, read_profile
from shared.runtime.home import default_models_dir
from shared.runtime.machine import fast_dtype

FOLDER = REPORTS.parent / "validation"
PROFILES = "profiles"  # the folder of profiles and recordings, in the folder of results
WORK = ROOT / "build" / "validation"  # logs
LIVE_PACKAGES = ("awc", "services", "shared")  # that decide what a live run measures
CALIBRATION, JUDGED = 1, 2  # seeds of arrivals
ATTEMPTS, NUM_CALIBRATIONS = 3, 3  # most runs of a case; runs of the calibration of a system
ORIGIN = Origin.here("benchmarks.validation")

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Names = Annotated[list[str] | None, typer.Option("--system", help=f"Only these systems: {', '.join(SYSTEMS)}.")]
Folder = Annotated[Path | None, typer.Option(help="Folder for results.", show_default="docs/reports/validation")]
Python = Annotated[
    Path | None, typer.Option("--verifier-python", help="Python with vLLM; default: that of `make vllm`.")
]


@dataclass(frozen=True, slots=True)
class ResultCode:
    """The part of a CaseResult that results of all versions of the code have."""

    code: str


def path_of(case: Case, folder: Path) -> Path:
    return folder / f"{case.name}.json"


def profile_path(system: str, draft: str, folder: Path) -> Path:
    return folder / PROFILES / f"{system}-{draft}.json"


def read_profiles(folder: Path) -> dict[str, Profile]:
    """All profiles of a folder of results, by the names of system and draft."""
    return {path.stem: read_profile(path) for path in sorted((folder / PROFILES).glob("*.json"))}


def results_of(cases: Sequence[Case], folder: Path, code: str) -> list[CaseResult]:
    """Results of this code, void ones included. Those of other code may have another form and are not read."""
    paths = [path_of(case, folder) for case in cases]
    current = [path for path in paths if path.is_file() and read_result(path, ResultCode).code == code]
    found = [read_result(path, CaseResult) for path in current]
    return [result for result in found if result.case in cases]


def code_of(models: Path) -> str:
    """Digest of what a live run computes: services, the default pair, and the distilled draft, which is made here."""
    return digest_of(models, digest_of_folder(models / f"draft-{DISTILLED}"), packages=LIVE_PACKAGES)


def unfinished(cases: Sequence[Case], folder: Path, code: str) -> list[Case]:
    """Cases without a valid result."""
    finished = {result.case.name for result in results_of(cases, folder, code) if not result.complaints}
    return [case for case in cases if case.name not in finished]


# --- live runs --------------------------------------------------------------------------------------------------------


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


def prepare(systems: Sequence[ValidationSystem], folder: Path) -> None:
    """Makes the default pair, and the recordings that are missing or of other drafts."""
    subprocess.run([sys.executable, "-m", "model_zoo", "prepare"], check=True)
    pairs = [(system, draft) for system in systems if not system.is_replayed for draft in system.drafts]
    for path, draft in {recording_of(system, draft, folder / PROFILES): draft for system, draft in pairs}.items():
        if not is_recorded(draft, default_models_dir(), path):
            _notify(f"recording the {draft} draft")
            subprocess.run([sys.executable, "-m", "benchmarks.validation.record", draft, str(path)], check=True)


async def _calibrate(live: LiveSystem, loads: Sequence[Case]) -> list[CalibrationPhase]:
    found = []
    for load in loads:
        for _ in range(ATTEMPTS):
            phase = await live.run(load, read_prompts(CALIBRATING), CALIBRATION)
            if not phase.complaints:
                break
            _notify(f"void: {'; '.join(phase.complaints[:5])}")
        found.append(CalibrationPhase(load, phase))
        _notify(f"{live.system.name}: {load.draft or 'target-only'}, {load.windows}, {load.load}: {phase.took_s:.0f} s")
    return found


def calibrate_system(system: ValidationSystem, python: Path | None, folder: Path) -> None:
    """Measures a system and writes its profiles."""

    loads = calibration_of(system)

    async def measured(place: Path) -> list[CalibrationPhase]:
        num = num_keys([case.load for case in ATTEMPTS * loads])
        async with started(system, python, num, place, _notify) as live:
            return await _calibrate(live, loads)

    with TemporaryDirectory(prefix="dsd-calibrate-") as place:
        phases = asyncio.run(measured(Path(place)))
    write_result(WORK / f"calibration-{system.name}.json", phases)
    write_profiles(system, phases, folder)


def write_profiles(system: ValidationSystem, phases: Sequence[CalibrationPhase], folder: Path) -> None:
    dtype = f", {fast_dtype()}" if system.engine is EngineName.VLLM else ""
    origin = f"{ORIGIN.command}, {ORIGIN.date}, {ORIGIN.machine}{dtype}"
    for draft, profile in profiles_of(system.name, phases, origin).items():
        path = profile_path(system.name, draft, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(profile.model_dump_json(indent=1) + "\n", encoding="utf-8")


def run_cases(system: ValidationSystem, cases: Sequence[Case], python: Path | None, folder: Path, code: str) -> None:
    """Runs the cases of a system in one running system. A failed case leaves no result; the next call runs it again.

    A system without profiles, or without a result of this code, is calibrated before the cases, half way through and
    after them, as machines drift. Void figures are measured again, up to ATTEMPTS times in all.
    """
    of_system = [case for case in (*cases, *CASES, *DEVELOPMENT) if case.system == system.name]
    has_profiles = all(profile_path(system.name, draft, folder).is_file() for draft in system.drafts)
    is_new = not has_profiles or not results_of(of_system, folder, code)
    loads = calibration_of(system) if is_new else []
    prompts = prompts_of(system, is_development=cases[0] in DEVELOPMENT)

    async def all_of(place: Path) -> None:
        beside = [target_only_beside(case) for case in cases]
        attempts = ATTEMPTS * [*beside, *cases, *beside]
        num = num_keys([case.load for case in (*attempts, *(NUM_CALIBRATIONS * ATTEMPTS * loads))])
        async with started(system, python, num, place, _notify) as live:
            phases = await _calibrate(live, loads)
            if is_new:
                write_profiles(system, phases, folder)
            for number, case in enumerate(cases):
                if is_new and number == len(cases) // 2:
                    phases += await _calibrate(live, loads)
                try:
                    await run_case(live, case, prompts, folder, code)
                except Exception:  # other cases can still run
                    console.print(f"{case.name} failed:", style="red", highlight=False)
                    console.print_exception()
            if is_new:
                phases += await _calibrate(live, loads)
                write_result(WORK / f"calibration-{system.name}.json", phases)
                write_profiles(system, phases, folder)

    with TemporaryDirectory(prefix="dsd-validate-") as place:
        asyncio.run(all_of(Path(place)))


async def run_case(live: LiveSystem, case: Case, prompts: Sequence[str], folder: Path, code: str) -> None:
    """Runs a case between answers without drafts, until the figures count."""
    alone = target_only_beside(case)
    for num_void in range(ATTEMPTS):
        before = await live.run(alone, prompts, JUDGED)
        phase = await live.run(case, prompts, JUDGED)
        after = await live.run(alone, prompts, JUDGED)
        if _keep(case, phase, (before, after), num_void, folder, code):
            break


def _keep(case: Case, phase: Phase, beside: Sequence[Phase], num_void: int, folder: Path, code: str) -> bool:
    """Writes the result of a case, and its logs. beside: the target-only phases before it and after it. Returns whether
    the figures count."""
    before, after = (TargetOnlyRun(figures_of(each, drafts=False), each.samples) for each in beside)
    complaints = [complaint for each in (phase, *beside) for complaint in each.complaints]
    change = unsteady(before.live, after.live)
    if change is not None:
        complaints.append(change)
    for complaint in complaints[:5]:
        _notify(f"void: {complaint}")
    write_result(WORK / f"case-{case.name}.json", phase)
    profile = read_profiles(folder)[f"{case.system}-{case.draft}"]
    result = CaseResult(
        case=case,
        code=code,
        live=figures_of(phase, drafts=True),
        samples=phase.samples,
        drafters=phase.drafters,
        beside=[before, after],
        drift=drift_of(phase, profile, 2 * case.link.delay_ms),
        took_s=phase.took_s,
        complaints=complaints,
        origin=ORIGIN,
        num_void=num_void,
    )
    write_result(path_of(case, folder), result)
    _notify(f"{case.name}: {phase.took_s:.0f} s")
    return not complaints


def _notify(line: str) -> None:
    console.print(f"{time.strftime('%H:%M:%S')} {line}", highlight=False, markup=False)


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
    systems, python = usable(system, verifier_python, default_models_dir())
    if not refit:
        prepare(systems, folder or FOLDER)
    for each in systems:
        if refit:
            phases = read_result(WORK / f"calibration-{each.name}.json", list[CalibrationPhase])
            write_profiles(each, phases, folder or FOLDER)
        else:
            calibrate_system(each, python, folder or FOLDER)


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

    Systems without a profile, or without a result of this code, are calibrated before, between and after their cases.
    Exits with status 1 if a case has no valid result or an error exceeds its limit.
    """
    exit_on_signals()
    models, place = default_models_dir(), folder or FOLDER
    code = code_of(models)
    known = DEVELOPMENT if development else CASES
    cases = [case for case in known if not only or any(part in case.name for part in only)]
    if not cases:
        names = ", ".join(case.name for case in known)
        raise typer.BadParameter(f"matches no case; cases: {names}", param_hint="--only")
    if not report_only:
        _run_unfinished(cases, system, verifier_python, place, code)
    found = predictions_of(results_of(known, place, code), read_profiles(place), place / PROFILES)
    if not found:
        console.print("no case has a result", style="red")
        raise typer.Exit(1)
    reported = {each.result.case.name for each in found}
    missing = [case.name for case in known if case.name not in reported]
    path = place / ("development.md" if development else "report.md")
    path.write_text(markdown(found, missing, ORIGIN), encoding="utf-8")
    console.print(f"see {path}", highlight=False)
    Console().print(table(found))
    if missing or any(each.result.complaints for each in found) or not all(each.holds for each in summaries(found)):
        raise typer.Exit(1)


def _run_unfinished(
    cases: Sequence[Case], names: Sequence[str] | None, python: Path | None, folder: Path, code: str
) -> None:
    systems, vllm = usable(names, python, default_models_dir())
    todo = unfinished([case for case in cases if case.system in {each.name for each in systems}], folder, code)
    console.print(f"{len(todo)} of {len(cases)} cases to run", highlight=False)
    systems = [system for system in systems if any(case.system == system.name for case in todo)]
    if not systems:
        return
    prepare(systems, folder)
    for each in systems:
        run_cases(each, [case for case in todo if case.system == each.name], vllm, folder, code)


if __name__ == "__main__":
    app()
