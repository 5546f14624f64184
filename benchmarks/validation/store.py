"""What the validation keeps: results and profiles for the report, and the records of rounds until all are there.

Invariant: results and records of other code, or of a case that has changed, count as absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.files import REPORTS, ROOT, read_result, write_result
from benchmarks.harness.origin import Origin, digest_of, digest_of_folder
from benchmarks.validation.calibration import CalibrationPhase, profiles_of
from benchmarks.validation.cases import CASES, DEVELOPMENT, ROUNDS, Case, ValidationSystem, calibration_of
from benchmarks.validation.results import CaseRecord, CaseResult, result_of
from services.local.engine import EngineName
from services.local.pair import DISTILLED
from shared.data.profiles import Profile, read_profile
from shared.runtime.machine import fast_dtype

FOLDER = REPORTS.parent / "validation"
WORK = ROOT / "build" / "validation"
PROFILES = "profiles"  # the folder of profiles and recordings, in the folder of results
LIVE_PACKAGES = ("awc", "services", "shared")  # that decide what a live run measures
ORIGIN = Origin.here("benchmarks.validation")


@dataclass(frozen=True, slots=True)
class ResultCode:
    """The part of a CaseResult that results of all versions of the code have."""

    code: str


@dataclass(frozen=True, slots=True)
class RecordHead:
    """The part of a CaseRecord that tells whether it counts."""

    case: Case
    complaints: list[str]


@dataclass(frozen=True, slots=True)
class LoadHead:
    """The part of a CalibrationPhase that tells what it measured."""

    case: Case


def code_of(models: Path) -> str:
    """Digest of what a live run computes: services, the default pair, and the distilled draft, which is made here."""
    return digest_of(models, digest_of_folder(models / f"draft-{DISTILLED}"), packages=LIVE_PACKAGES)


@dataclass(frozen=True, slots=True)
class Store:
    """Files of one version of the code. folder: of results; work: of records and their measurements."""

    folder: Path
    work: Path
    code: str

    @property
    def profiles(self) -> Path:
        """The folder of profiles and recordings."""
        return self.folder / PROFILES

    # --- results ---

    def result_path(self, case: Case) -> Path:
        return self.folder / f"{case.name}.json"

    def results(self, cases: Sequence[Case]) -> list[CaseResult]:
        """Void ones included. Those of other code may have another form and are not read."""
        paths = [self.result_path(case) for case in cases]
        current = [path for path in paths if path.is_file() and read_result(path, ResultCode).code == self.code]
        found = [read_result(path, CaseResult) for path in current]
        return [result for result in found if result.case in cases and len(result.rounds) == ROUNDS]

    def unfinished(self, cases: Sequence[Case]) -> list[Case]:
        """Cases without a valid result."""
        finished = {result.case.name for result in self.results(cases) if not result.complaints}
        return [case for case in cases if case.name not in finished]

    def finish(self, system: ValidationSystem, cases: Sequence[Case]) -> None:
        """Writes the profiles of a system and the results of these cases of it, of which all rounds are there, and puts
        the records aside, so that what is measured later is new."""
        calibrations = [self._calibration_path(system, number) for number in range(ROUNDS)]
        if all(path.is_file() for path in calibrations):
            phases = [phase for path in calibrations for phase in read_result(path, list[CalibrationPhase])]
            self.write_profiles(system, [each for each in phases if not each.phase.complaints])
            self._put_aside(calibrations)
        profiles = self.read_profiles()
        for case in cases:
            paths = [self._record_path(case, number) for number in range(ROUNDS)]
            if not all(path.is_file() and read_result(path, RecordHead).case == case for path in paths):
                continue
            records = [read_result(path, CaseRecord) for path in paths]
            result = result_of(self.code, records, profiles[f"{case.system}-{case.draft}"])
            write_result(self.result_path(case), result)
            if not result.complaints:
                self._put_aside(paths)

    def _put_aside(self, paths: Sequence[Path]) -> None:
        for path in paths:
            to = self.work / "finished" / path.relative_to(self.work / self.code)
            to.parent.mkdir(parents=True, exist_ok=True)
            path.replace(to)

    # --- records of rounds ---

    def _record_path(self, case: Case, number: int) -> Path:
        return self._round_path(case.system, number) / f"{case.name}.json"

    def _round_path(self, system: str, number: int) -> Path:
        return self.work / self.code / system / f"round-{number}"

    def keep_record(self, record: CaseRecord, number: int) -> None:
        write_result(self._record_path(record.case, number), record)

    def has_record(self, case: Case, number: int) -> bool:
        """Whether the record of a round is there and counts."""
        path = self._record_path(case, number)
        return path.is_file() and read_result(path, RecordHead) == RecordHead(case, [])

    def _calibration_path(self, system: ValidationSystem, number: int) -> Path:
        return self._round_path(system.name, number) / "calibration.json"

    def keep_calibration(self, system: ValidationSystem, number: int, phases: Sequence[CalibrationPhase]) -> None:
        write_result(self._calibration_path(system, number), phases)

    def has_calibration(self, system: ValidationSystem, number: int) -> bool:
        """Whether that of a round is there, with the present loads."""
        path = self._calibration_path(system, number)
        return path.is_file() and [each.case for each in read_result(path, list[LoadHead])] == calibration_of(system)

    def needs_calibration(self, system: ValidationSystem) -> bool:
        """Whether the system has no profiles, or no result of this code."""
        has_profiles = all(self.profile_path(system.name, draft).is_file() for draft in system.drafts)
        of_system = [case for case in (*CASES, *DEVELOPMENT) if case.system == system.name]
        return not has_profiles or not self.results(of_system)

    # --- profiles ---

    def profile_path(self, system: str, draft: str) -> Path:
        return self.profiles / f"{system}-{draft}.json"

    def read_profiles(self) -> dict[str, Profile]:
        """All of the folder, by the names of system and draft."""
        return {path.stem: read_profile(path) for path in sorted(self.profiles.glob("*.json"))}

    def write_profiles(self, system: ValidationSystem, phases: Sequence[CalibrationPhase]) -> None:
        """Keeps the phases too, for `refit`."""
        write_result(self._fitted_path(system), phases)
        dtype = f", {fast_dtype()}" if system.engine is EngineName.VLLM else ""
        origin = f"{ORIGIN.command}, {ORIGIN.date}, {ORIGIN.machine}{dtype}"
        for draft, profile in profiles_of(system.name, phases, origin).items():
            path = self.profile_path(system.name, draft)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(profile.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def refit(self, system: ValidationSystem) -> None:
        """Fits the kept phases again."""
        self.write_profiles(system, read_result(self._fitted_path(system), list[CalibrationPhase]))

    def _fitted_path(self, system: ValidationSystem) -> Path:
        return self.work / f"calibration-{system.name}.json"
