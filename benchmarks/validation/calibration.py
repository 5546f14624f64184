"""Fits the times of a system's parts to its calibration: one profile for each of its drafts. Pure.

Invariant: only durations of parts are used: passes, draft steps, the gaps between them, the round trip, and the way of
a request to its first pass and back. Throughput and latency of answers are not used.

A draft step whose time alone is `y` and beside which passes run for the time `b` takes `y + (1 - 1 / slowdown) b`. A
pass has the slowdown `1 + (pass_slowdown - 1) base / y`. Times of passes are fitted to passes alone. Draft steps of
several sessions are never alone, so their times and slowdown are fitted together.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from benchmarks.harness.latency import RequestSample
from benchmarks.standins.compute_log import ComputeRecord
from benchmarks.validation.cases import UNLIMITED, Case
from benchmarks.validation.live import Phase
from model_zoo.measuring.profile import PassPoint, StepPoint, fit_passes, fit_steps
from services.cloud_verifier.settings import VerifierSettings
from shared.data.profiles import MAX_EXTRAS, MachineTimes, PassTimes, Profile, StepTimes

TOKEN_BUDGET = int(VerifierSettings.model_fields["token_budget"].default)
NUM_ROUNDS = 12  # of bisecting a slowdown
ALONE = 0.02  # most of a time beside others that counts as none
BESIDE = 0.5  # least share of its time beside steps of a phase that tells their slowdown; the median phase counts
FEW = 4  # passes of a size that tell half of its extra time
MOST_SLOWDOWN = 3.0


class NotCalibrated(ValueError):
    """The phases hold too little to calibrate from."""


@dataclass(frozen=True, slots=True)
class CalibrationPhase:
    """A load of the calibration and what was measured."""

    case: Case
    phase: Phase


def profiles_of(system: str, phases: Sequence[CalibrationPhase], origin: str) -> dict[str, Profile]:
    """A profile for each draft. Raises NotCalibrated."""
    drafts = list(dict.fromkeys(each.case.draft for each in phases if each.case.draft))
    passes, pass_slowdowns = shared_passes(phases)
    base_gap, session_gap = fit_gaps([log for each in phases if _never_waits(each.case) for log in each.phase.passes])
    requests = [
        overhead_ms(sample, each.phase)
        for each in phases
        if each.case.draft is None and each.case.load.num_clients == 1
        for sample in each.phase.samples
    ]
    found = {}
    for draft in drafts:
        own = [each for each in phases if each.case.draft == draft]
        if draft not in pass_slowdowns:
            raise NotCalibrated(f"hardly a pass ran beside steps of the {draft} draft")
        steps, step_slowdown = shared_steps(own)
        unlimited = [log for each in own if each.case.control == UNLIMITED for log in each.phase.steps]
        found[draft] = Profile(
            name=f"{system}-{draft}",
            origin=origin,
            verifier=passes,
            drafter=steps,
            machine=MachineTimes(
                request_ms=max(0.0, median(requests) - base_gap - session_gap),
                message_ms=message_ms(own),
                pass_gap_ms=base_gap,
                session_gap_ms=session_gap,
                step_gap_ms=median(gaps_ms(unlimited)),
                pass_slowdown=pass_slowdowns[draft],
                step_slowdown=step_slowdown,
            ),
        )
    return found


def _never_waits(case: Case) -> bool:
    """Whether a verifier with this load always has a session to compute."""
    return case.draft is None or (not isinstance(case.control, str) and case.control.free_run)


def message_ms(phases: Sequence[CalibrationPhase]) -> float:
    """Half the mean round trip."""
    trips = [each.phase.observed.rtt_ms for each in phases]
    known = [trip for trip in trips if trip is not None]
    if not known:
        raise NotCalibrated("no drafter reported a round trip")
    return fmean(known) / 2


# --- passes and steps -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SharedRecord:
    """A pass or a step, and for how long any of the other kind ran beside it."""

    record: ComputeRecord
    beside_ms: float

    @property
    def is_alone(self) -> bool:
        """But for a small part of its time."""
        return self.beside_ms < ALONE * self.record.elapsed_ms

    @property
    def share_beside(self) -> float:
        """Of its time, beside others."""
        return self.beside_ms / self.record.elapsed_ms

    def own_ms(self, slowdown: float, bound: float = 1.0) -> float:
        """Without what the others cost it (lost_share)."""
        return self.record.elapsed_ms - lost_share(slowdown, bound) * self.beside_ms


def shared_passes(phases: Sequence[CalibrationPhase]) -> tuple[PassTimes, dict[str, float]]:
    """Times of passes alone, and the slowdown beside the steps of each draft."""
    by_phase = [(each.case.draft, _passes_of(each.phase)) for each in phases]
    alone = [each.record for _, records in by_phase for each in records if each.is_alone]
    if not alone:
        raise NotCalibrated("no pass ran alone")
    points = [PassPoint(each.num_sessions, each.num_tokens, each.num_cached, each.elapsed_ms) for each in alone]
    times = fit_passes(points)[0]
    times = times.model_copy(update={"extra_ms": extras(alone, times)})
    slowdowns: dict[str, list[float]] = {}
    for draft, records in by_phase:
        alone_ms = np.array([pass_ms(times, each.record) for each in records])
        if draft is not None and sum(each.beside_ms for each in records) > BESIDE * alone_ms.sum():
            slowdowns.setdefault(draft, []).append(pass_slowdown(records, alone_ms, times.base_ms))
    return times, {draft: median(found) for draft, found in slowdowns.items()}


def _passes_of(phase: Phase) -> list[SharedRecord]:
    busy = busy_times(phase.steps)
    return [SharedRecord(record, beside_ms(record, busy)) for log in phase.passes for record in log]


def extras(alone: Sequence[ComputeRecord], times: PassTimes) -> tuple[float, ...]:
    """Mean excess over the weighted sum of passes of 1, 2, … tokens; less where there are few of them.

    Kernels suit some sizes better than others, so the time of a small pass is no smooth function of its tokens.
    """
    sums, counts = [0.0] * MAX_EXTRAS, [0] * MAX_EXTRAS
    for record in alone:
        if record.num_tokens <= MAX_EXTRAS:
            sums[record.num_tokens - 1] += record.elapsed_ms - pass_ms(times, record)
            counts[record.num_tokens - 1] += 1
    return tuple(round(total / (count + FEW), 6) for total, count in zip(sums, counts, strict=True))


def shared_steps(phases: Sequence[CalibrationPhase]) -> tuple[StepTimes, float]:
    """Times of draft steps alone, and their slowdown beside passes, from the phases of one draft."""
    records = [
        SharedRecord(record, beside_ms(record, busy))
        for each in phases
        for busy in [busy_times(each.phase.passes)]
        for log in each.phase.steps
        for record in log
    ]
    if not records:
        raise NotCalibrated("no draft step ran")

    def fitted(slowdown: float) -> StepTimes:
        own = [(each.record, each.own_ms(slowdown)) for each in records]
        return fit_steps([StepPoint(r.num_cached, r.num_tokens, own_ms, r.num_sessions) for r, own_ms in own])[0]

    def excess(slowdown: float) -> float:
        times = fitted(slowdown)
        alone_ms = np.array([step_ms(times, each.record) for each in records])
        return excess_beside(records, np.array([each.own_ms(slowdown) for each in records]), alone_ms)

    slowdown = slowdown_without(excess)
    return fitted(slowdown), slowdown


def lost_share(slowdown: float, bound: float = 1.0) -> float:
    """The share of the time beside others that they cost. bound: the share of the time alone that is slowed down."""
    return 1 - 1 / (1 + (slowdown - 1) * bound)


def pass_slowdown(records: Sequence[SharedRecord], alone_ms: NDArray[np.float64], base_ms: float) -> float:
    """Of passes that would take `alone_ms` alone, `base_ms` of it slowed down."""
    bounds = np.minimum(base_ms / alone_ms, 1.0)

    def excess(slowdown: float) -> float:
        own_ms = np.array([each.own_ms(slowdown, bound) for each, bound in zip(records, bounds, strict=True)])
        return excess_beside(records, own_ms, alone_ms)

    return slowdown_without(excess)


def slowdown_without(excess: Callable[[float], float]) -> float:
    """The slowdown with which the excess, which falls, is 0; at most MOST_SLOWDOWN."""
    low, high = 1.0, MOST_SLOWDOWN
    for _ in range(NUM_ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return low


def excess_beside(records: Sequence[SharedRecord], own_ms: NDArray[np.float64], alone_ms: NDArray[np.float64]) -> float:
    """Mean relative error of the times without what others cost, weighted by the share of time beside others.

    Least squares over the time beside others would take chance for slowdown: a record that is long for any other reason
    has more of that time, but no larger share (an instrumental variable).
    """
    shares = np.array([each.share_beside for each in records])
    return float((shares * (own_ms / alone_ms - 1)).mean())


def pass_ms(times: PassTimes, record: ComputeRecord) -> float:
    return times.pass_ms(record.num_sessions, record.num_tokens, record.num_cached)


def step_ms(times: StepTimes, record: ComputeRecord) -> float:
    return times.feed_ms(record.num_tokens, record.num_cached, record.num_sessions)


def busy_times(logs: Sequence[Sequence[ComputeRecord]]) -> list[ComputeRecord]:
    """All records of the logs by their end; those that overlap are rare, since models of one kind share a core."""
    return sorted((record for log in logs for record in log), key=lambda record: record.end_s)


def beside_ms(record: ComputeRecord, others: Sequence[ComputeRecord]) -> float:
    """For how long any of the others, which are in order, ran during the record."""
    total_s, reached_s = 0.0, record.start_s
    for index in range(bisect_left(others, record.start_s, key=lambda other: other.end_s), len(others)):
        other = others[index]
        if other.start_s >= record.end_s and other.end_s - other.start_s < record.end_s - record.start_s:
            break
        begin_s, end_s = max(other.start_s, reached_s), min(other.end_s, record.end_s)
        if end_s > begin_s:
            total_s += end_s - begin_s
            reached_s = end_s
        if other.end_s >= record.end_s:
            break
    return total_s * 1e3


# --- gaps and requests ------------------------------------------------------------------------------------------------


def gaps_ms(logs: Sequence[Sequence[ComputeRecord]]) -> list[float]:
    """Gaps between consecutive records of each log. Raises NotCalibrated if there are none."""
    found = [(b.start_s - a.end_s) * 1e3 for log in logs for a, b in itertools.pairwise(log)]
    if not found:
        raise NotCalibrated("no log holds two consecutive passes or steps")
    return found


def fit_gaps(passes: Sequence[Sequence[ComputeRecord]]) -> tuple[float, float]:
    """Gap in milliseconds after any pass, and the addition for each session in it.

    Fits a line through the median gap of each number of sessions, so that a rare wait changes little.
    """
    by_sessions: dict[int, list[float]] = {}
    for each in passes:
        for a, b in itertools.pairwise(each):
            by_sessions.setdefault(a.num_sessions, []).append((b.start_s - a.end_s) * 1e3)
    if not by_sessions:
        raise NotCalibrated("no log holds two consecutive passes")
    if len(by_sessions) == 1:
        return median(next(iter(by_sessions.values()))), 0.0
    weights = np.sqrt([len(gaps) for gaps in by_sessions.values()])
    features = np.array([[1.0, num] for num in by_sessions]) * weights[:, None]
    middles = np.array([median(gaps) for gaps in by_sessions.values()]) * weights
    base, session = lsq_linear(features, middles, bounds=(0, np.inf)).x
    return float(base), float(session)


def overhead_ms(sample: RequestSample, phase: Phase) -> float:
    """Time to the first token of a lone request, minus the passes over its prompt."""
    if sample.first_s is None:
        raise NotCalibrated(f"a request failed: {sample.status}")
    due_s, num = phase.begin_s + sample.due_s, math.ceil(sample.num_prompt_tokens / TOKEN_BUDGET)
    own = [each for each in busy_times(phase.passes) if each.start_s >= due_s][:num]
    if len(own) < num:
        raise NotCalibrated("a request was answered without a pass")
    way_there_s, way_back_s = own[0].start_s - due_s, due_s + sample.first_s - own[-1].end_s
    return (way_there_s + way_back_s) * 1e3
