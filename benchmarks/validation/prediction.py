"""Predicts live runs: simulates each from its pair's profile, and relates it to the target-only run of its load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.validation.cases import SYSTEMS, Case, target_only
from benchmarks.validation.prompts import recording_of
from benchmarks.validation.results import CaseFigures, CaseResult
from benchmarks.validation.scenario import scenario_of, simulate
from shared.data.profiles import Profile


@dataclass(frozen=True, slots=True)
class Prediction:
    """A live run and its simulation, each with its speed-up over target-only (TPOT / TPOT); None: not known."""

    result: CaseResult
    simulated: CaseFigures
    live_speed_up: float | None = None
    simulated_speed_up: float | None = None

    def figures(self, name: str) -> tuple[float, float] | None:
        """Live and simulated; None: not known, or not to be predicted, as the throughput of an open loop."""
        if name == "speed_up":
            live, simulated = self.live_speed_up, self.simulated_speed_up
            return None if live is None or simulated is None else (live, simulated)
        if name == "tokens_per_s" and not self.result.case.load.num_clients:
            return None
        live, simulated = getattr(self.result.live, name), getattr(self.simulated, name)
        return None if live is None or simulated is None else (live, simulated)

    def error(self, name: str) -> float | None:
        """simulated / live - 1; None: not known, or the live figure is 0."""
        known = self.figures(name)
        return known[1] / known[0] - 1 if known is not None and known[0] else None


def predictions_of(
    results: Sequence[CaseResult], cases: Sequence[Case], profiles: Mapping[str, Profile], recordings: Path
) -> list[Prediction]:
    """In the order of the results. profiles: by system and draft; recordings: the folder of those of real drafts."""
    simulated = {each.case.name: _simulated(each, profiles, recordings) for each in results}
    live = {each.case.name: each.live for each in results}
    found = []
    for result in results:
        name, base = result.case.name, target_only(result.case, tuple(cases))
        if base is None or base.name not in live:
            found.append(Prediction(result, simulated[name]))
            continue
        speed_ups = (known[base.name].tpot_ms / known[name].tpot_ms for known in (live, simulated))
        found.append(Prediction(result, simulated[name], *speed_ups))
    return found


def _simulated(result: CaseResult, profiles: Mapping[str, Profile], recordings: Path) -> CaseFigures:
    case = result.case
    recording = recording_of(SYSTEMS[case.system], case.draft, recordings) if case.draft else None
    profile = profiles[f"{case.system}-{case.draft or SYSTEMS[case.system].drafts[0]}"]
    with TemporaryDirectory(prefix="dsd-predict-") as place:
        folder = Path(place)
        scenario = scenario_of(case, profile, recording, result.drafters, result.samples, folder)
        return simulate(scenario, folder)
