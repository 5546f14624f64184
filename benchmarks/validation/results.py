"""Results of live cases: the figures of each round, and its requests, from which it can be simulated again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any, TypeVar

from benchmarks.harness.latency import LatencyObjective, RequestSample, summarise
from benchmarks.harness.origin import Origin
from benchmarks.validation.calibration import beside_ms, busy_times, lost_share, pass_ms, step_ms
from benchmarks.validation.cases import Case
from benchmarks.validation.live import Phase, PhaseFailed
from shared.data.profiles import Profile


@dataclass(frozen=True, slots=True)
class CaseFigures:
    """The compared figures: means over answers or passes. `acceptance` is shown only. None: no drafters."""

    tokens_per_s: float
    ttft_ms: float
    tpot_ms: float
    acceptance_length: float
    queue: float  # utilisation at the end of passes
    acceptance: float | None
    guesses: float | None = None  # that drafters made, for each token of the answers


@dataclass(frozen=True, slots=True)
class TargetOnlyRun:
    """The answers without drafts before a round of a case or after it."""

    live: CaseFigures
    samples: list[RequestSample]


@dataclass(frozen=True, slots=True)
class TimingDrift:
    """Relative excess of a live run's passes and steps over the profile, given what ran beside them; its round trip
    beyond the link. None: no data."""

    passes: float
    steps: float | None
    trip_ms: float | None


@dataclass(frozen=True, slots=True)
class CaseRecord:
    """What was measured in a round of a case, and without drafts before it and after it."""

    case: Case
    phase: Phase
    beside: list[Phase]
    complaints: list[str]  # why the figures are void; empty: they count
    num_void: int  # void runs of the round before this one
    origin: Origin


@dataclass(frozen=True, slots=True)
class CaseRound:
    """The figures of a round, and its requests."""

    live: CaseFigures
    samples: list[RequestSample]
    drafters: list[str | None]
    beside: list[TargetOnlyRun]
    drift: TimingDrift
    took_s: float
    complaints: list[str]
    num_void: int


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The result file of a case. Its figures are means over rounds."""

    case: Case
    code: str  # of services and models
    rounds: list[CaseRound]
    origin: Origin

    @property
    def live(self) -> CaseFigures:
        return means([each.live for each in self.rounds])

    @property
    def beside(self) -> CaseFigures:
        """Without drafts."""
        return means([run.live for each in self.rounds for run in each.beside])

    @property
    def drift(self) -> TimingDrift:
        return means([each.drift for each in self.rounds])

    @property
    def complaints(self) -> list[str]:
        return [complaint for each in self.rounds for complaint in each.complaints]


Figures = TypeVar("Figures", CaseFigures, TimingDrift)


def means(found: Sequence[Figures]) -> Figures:
    """Of each figure; None where one is None."""
    known = {each.name: [getattr(one, each.name) for one in found] for each in fields(found[0])}
    made: dict[str, Any] = {name: None if None in values else fmean(values) for name, values in known.items()}
    return type(found[0])(**made)


def result_of(code: str, records: Sequence[CaseRecord], profile: Profile) -> CaseResult:
    """The result of a case from the records of its rounds."""
    return CaseResult(records[0].case, code, [_round_of(each, profile) for each in records], records[-1].origin)


def _round_of(record: CaseRecord, profile: Profile) -> CaseRound:
    phase = record.phase
    return CaseRound(
        live=figures_of(phase, drafts=True),
        samples=phase.samples,
        drafters=phase.drafters,
        beside=[TargetOnlyRun(figures_of(each, drafts=False), each.samples) for each in record.beside],
        drift=drift_of(phase, profile, 2 * record.case.link.delay_ms),
        took_s=phase.took_s,
        complaints=record.complaints,
        num_void=record.num_void,
    )


def figures_of(phase: Phase, *, drafts: bool) -> CaseFigures:
    """drafts: whether drafters may draft. Raises PhaseFailed if nothing was measured."""
    summary = summarise(phase.samples, LatencyObjective())
    if summary.ttft_ms is None or summary.tpot_ms is None or phase.observed.queue is None:
        raise PhaseFailed("no answer is long enough to measure")
    return CaseFigures(
        tokens_per_s=summary.tokens_per_s,
        ttft_ms=summary.ttft_ms.mean,
        tpot_ms=summary.tpot_ms.mean,
        acceptance_length=phase.acceptance_length,
        queue=phase.observed.queue,
        acceptance=summary.acceptance,
        guesses=phase.observed.num_guesses / sum(each.num_tokens for each in phase.samples) if drafts else None,
    )


def drift_of(phase: Phase, profile: Profile, rtt_ms: float) -> TimingDrift:
    """rtt_ms: of the link."""
    machine = profile.machine_times
    passes, steps = busy_times(phase.passes), busy_times(phase.steps)
    base_ms, pass_total = profile.pass_times.base_ms, 0.0
    for each in passes:
        alone_ms = pass_ms(profile.pass_times, each)
        pass_total += alone_ms + beside_ms(each, steps) * lost_share(
            machine.pass_slowdown, min(1.0, base_ms / alone_ms)
        )
    lost_step = lost_share(machine.step_slowdown)
    step_total = sum(step_ms(profile.step_times, each) + lost_step * beside_ms(each, passes) for each in steps)
    trip_ms = phase.observed.rtt_ms
    return TimingDrift(
        passes=sum(each.elapsed_ms for each in passes) / pass_total - 1,
        steps=sum(each.elapsed_ms for each in steps) / step_total - 1 if steps else None,
        trip_ms=trip_ms - rtt_ms if trip_ms is not None else None,
    )
