"""Predicts live cases: simulates each round from its pair's profile, and the target-only answers beside it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness.latency import RequestSample
from benchmarks.validation.cases import SYSTEMS, Case, target_only_beside
from benchmarks.validation.prompts import recording_of
from benchmarks.validation.results import CaseFigures, CaseResult, means
from benchmarks.validation.scenario import scenario_of, simulate
from shared.data.profiles import Profile


@dataclass(frozen=True, slots=True)
class Prediction:
    """A live case and its simulation, and the simulation of the target-only answers beside it: means over rounds."""

    result: CaseResult
    simulated: CaseFigures
    beside: CaseFigures

    def figures(self, name: str) -> tuple[float, float] | None:
        """Live and simulated; None: not known, or not to be predicted, as the throughput of an open loop.

        The speed-up is that over the target-only answers beside the case (TPOT / TPOT).
        """
        if name != "speed_up":
            return self._known(name, self.result.live, self.simulated)
        alone, over = self.beside_figures("tpot_ms"), self.figures("tpot_ms")
        return alone and over and (alone[0] / over[0], alone[1] / over[1])

    def beside_figures(self, name: str) -> tuple[float, float] | None:
        """Live and simulated, of the target-only answers beside the case; None as in `figures`."""
        return self._known(name, self.result.beside, self.beside)

    def _known(self, name: str, live: CaseFigures, simulated: CaseFigures) -> tuple[float, float] | None:
        if name == "speed_up" or (name == "tokens_per_s" and not self.result.case.load.num_clients):
            return None
        known, predicted = getattr(live, name), getattr(simulated, name)
        return None if known is None or predicted is None else (known, predicted)


def error_of(known: tuple[float, float] | None) -> float | None:
    """simulated / live - 1; None: not known, or the live figure is 0."""
    return known[1] / known[0] - 1 if known is not None and known[0] else None


def predictions_of(
    results: Sequence[CaseResult], profiles: Mapping[str, Profile], recordings: Path
) -> list[Prediction]:
    """In the order of the results. profiles: by system and draft; recordings: the folder of those of real drafts."""
    return [_predicted(each, profiles[f"{each.case.system}-{each.case.draft}"], recordings) for each in results]


def _predicted(result: CaseResult, profile: Profile, recordings: Path) -> Prediction:
    case = result.case
    assert case.draft is not None
    recording = recording_of(SYSTEMS[case.system], case.draft, recordings)
    alone = target_only_beside(case)
    simulated, beside = [], []
    for number, each in enumerate(result.rounds):
        simulated.append(_simulated(case, profile, recording, each.drafters, each.samples, number))
        beside += [
            _simulated(alone, profile, recording, [None] * len(run.samples), run.samples, number) for run in each.beside
        ]
    return Prediction(result, means(simulated), means(beside))


def _simulated(
    case: Case,
    profile: Profile,
    recording: Path,
    drafters: Sequence[str | None],
    samples: Sequence[RequestSample],
    number: int,
) -> CaseFigures:
    with TemporaryDirectory(prefix="dsd-predict-") as place:
        folder = Path(place)
        return simulate(scenario_of(case, profile, recording, drafters, samples, folder), folder, number)
