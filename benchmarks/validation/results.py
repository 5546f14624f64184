"""Results of live runs of cases: their figures, and their requests, from which a run can be simulated again."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness.latency import LatencyObjective, RequestSample, summarise
from benchmarks.harness.origin import Origin
from benchmarks.validation.calibration import beside_ms, busy_times, lost_share, pass_ms, step_ms
from benchmarks.validation.cases import Case
from benchmarks.validation.live import Phase, PhaseFailed
from shared.data.profiles import Profile

MOST_CHANGE = 0.2  # of the time per token without drafts between before and after a case that counts


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
    """The answers without drafts before a case or after it."""

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
class CaseResult:
    """The result file of a case."""

    case: Case
    code: str  # of services and models
    live: CaseFigures
    samples: list[RequestSample]
    drafters: list[str | None]
    beside: list[TargetOnlyRun]
    drift: TimingDrift
    took_s: float
    complaints: list[str]  # why the figures are void; empty: they count
    origin: Origin
    num_void: int = 0  # void runs of the case before this one


def unsteady(before: CaseFigures, after: CaseFigures) -> str | None:
    """How the machine changed during a case, by the answers without drafts around it; None: hardly."""
    fast, slow = sorted((before.tpot_ms, after.tpot_ms))
    if slow <= (1 + MOST_CHANGE) * fast:
        return None
    return f"a token without drafts took {before.tpot_ms:.1f} ms before the case and {after.tpot_ms:.1f} ms after it"


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
