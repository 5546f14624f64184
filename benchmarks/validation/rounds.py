"""Runs rounds: each starts the services of a system, calibrates it, and runs a share of every case.

Invariant: a record is kept only when its part of a round has ended, and what is kept and counts is not run again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from benchmarks.validation.calibration import CalibrationPhase
from benchmarks.validation.cases import DEVELOPMENT, Case, ValidationSystem, calibration_of, target_only_beside
from benchmarks.validation.live import LiveSystem, num_keys, started
from benchmarks.validation.prompts import CALIBRATING, prompts_of
from benchmarks.validation.results import CaseRecord, figures_of
from benchmarks.validation.store import ORIGIN, Store
from model_zoo.prompt_file import read_prompts

CALIBRATION, JUDGED = 1, 2  # seeds of arrivals; that of a case grows with the round
ATTEMPTS = 3  # most runs of a part of a round

console = Console(stderr=True)


def notify(line: str) -> None:
    console.print(f"{time.strftime('%H:%M:%S')} {line}", highlight=False, markup=False)


def calibrate_system(system: ValidationSystem, python: Path | None) -> list[CalibrationPhase]:
    """Measures a system once."""

    async def measured(place: Path) -> list[CalibrationPhase]:
        num = num_keys([case.load for case in ATTEMPTS * calibration_of(system)])
        async with started(system, python, num, place, notify) as live:
            return await _calibrate(live)

    with TemporaryDirectory(prefix="dsd-calibrate-") as place:
        return asyncio.run(measured(Path(place)))


async def _calibrate(live: LiveSystem) -> list[CalibrationPhase]:
    found = []
    for load in calibration_of(live.system):
        for _ in range(ATTEMPTS):
            phase = await live.run(load, read_prompts(CALIBRATING), CALIBRATION)
            if not phase.complaints:
                break
            notify(f"void: {'; '.join(phase.complaints[:5])}")
        found.append(CalibrationPhase(load, phase))
        notify(f"{live.system.name}: {load.draft or 'target-only'}, {load.windows}, {load.load}: {phase.took_s:.0f} s")
    return found


def run_round(
    system: ValidationSystem, cases: Sequence[Case], number: int, python: Path | None, store: Store, *, calibrates: bool
) -> None:
    """Runs what is missing of a round in one running system. A failed case leaves no record; the next call runs it
    again. calibrates: whether a calibration is part of the round."""
    todo = [case for case in cases if not store.has_record(case, number)]
    calibrates = calibrates and not store.has_calibration(system, number)
    if not todo and not calibrates:
        return

    async def all_of(place: Path) -> None:
        parts = [part for case in todo for part in (target_only_beside(case), case, target_only_beside(case))]
        loads = [case.load for case in (*parts, *(calibration_of(system) if calibrates else []))]
        async with started(system, python, num_keys(ATTEMPTS * loads), place, notify) as live:
            if calibrates:
                store.keep_calibration(system, number, await _calibrate(live))
            for case in todo:
                try:
                    store.keep_record(await run_case(live, case, number), number)
                except Exception:  # other cases can still run
                    console.print(f"{case.name} failed:", style="red", highlight=False)
                    console.print_exception()

    with TemporaryDirectory(prefix="dsd-validate-") as place:
        asyncio.run(all_of(Path(place)))


async def run_case(live: LiveSystem, case: Case, number: int) -> CaseRecord:
    """Runs a round of a case between answers without drafts, until the figures count. A round has the next prompts.
    Raises PhaseFailed."""
    prompts = prompts_of(live.system, is_development=case in DEVELOPMENT)
    first = number * case.load.num_requests % len(prompts)
    prompts = prompts[first:] + prompts[:first]
    alone, seed = target_only_beside(case), JUDGED + number
    num_void = 0
    while True:
        before = await live.run(alone, prompts, seed)
        phase = await live.run(case, prompts, seed)
        after = await live.run(alone, prompts, seed)
        complaints = [complaint for each in (phase, before, after) for complaint in each.complaints]
        if complaints:
            notify(f"void: {'; '.join(complaints[:5])}")
        if not complaints or num_void + 1 == ATTEMPTS:
            break
        num_void += 1
    for each in (before, phase, after):
        figures_of(each, drafts=each is phase)  # raises PhaseFailed
    notify(f"{case.name}, round {number}: {phase.took_s:.0f} s")
    return CaseRecord(case, phase, [before, after], complaints, num_void, ORIGIN)
