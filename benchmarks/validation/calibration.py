"""Fits the times of a system's parts to its calibration: one profile for each of its drafts. Pure.

Invariant: only durations of parts are used: passes, draft steps, the gaps between them, the round trip, and the way of
a request to its first pass and back. Throughput and latency of answers are not used.

A draft step whose time alone is `y` and beside which passes run for the time `b` takes `y + (1 - 1 / slowdown) b`. A
pass has the slowdown `1 + (pass_slowdown - 1) base / y`. So times and slowdowns are fitted in turn.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from benchmarks.harness.latency import RequestSample
from benchmarks.standins.timed import ComputeRecord
from benchmarks.validation.cases import UNLIMITED, Case
from benchmarks.validation.live import Phase
from model_zoo.measuring.profile import PassPoint, StepPoint, fit_passes, fit_steps, step_times_of
from services.cloud_verifier.settings import VerifierSettings
from shared.data.profiles import MAX_EXTRAS, MachineTimes, PassTimes, Profile, StepTimes

PREFILL_CHUNK = int(VerifierSettings.model_fields["prefill_chunk"].default)
NUM_ROUNDS = 12  # of fitting times and slowdowns in turn
FEW = 4  # passes of a size that tell half of its extra time
SLOWDOWNS = np.arange(1.0, 3.0, 0.005)  # that are tried


class NotCalibrated(ValueError):
    """The phases hold too little to calibrate from."""


@dataclass(frozen=True, slots=True)
class CalibrationPhase:
    """A load of the calibration and what was measured."""

    case: Case
    phase: Phase


@dataclass(frozen=True, slots=True)
class SharedTimes:
    """Passes or steps alone, and their slowdown beside the other kind, by draft."""

    weights: list[float]
    slowdowns: dict[str, float]
    own_ms: list[float]  # of each record, without what the others cost it


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
        steps = shared_steps(own, draft)
        unlimited = [log for each in own if each.case.control == UNLIMITED for log in each.phase.steps]
        found[draft] = Profile(
            name=f"{system}-{draft}",
            origin=origin,
            verifier=passes,
            drafter=step_times_of(steps.weights),
            machine=MachineTimes(
                request_ms=max(0.0, median(requests) - base_gap - session_gap),
                message_ms=message_ms(own),
                pass_gap_ms=base_gap,
                session_gap_ms=session_gap,
                step_gap_ms=median(gaps_ms(unlimited)),
                pass_slowdown=pass_slowdowns[draft],
                step_slowdown=steps.slowdowns[draft],
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
    draft: str | None


def shared_passes(phases: Sequence[CalibrationPhase]) -> tuple[PassTimes, dict[str, float]]:
    """Times of passes alone, and their slowdown beside the steps of each draft."""
    records = [
        SharedRecord(record, beside_ms(record, busy), each.case.draft)
        for each in phases
        for busy in [busy_times(each.phase.steps)]
        for log in each.phase.passes
        for record in log
    ]

    def fit(elapsed: Sequence[float]) -> list[float]:
        points = [
            PassPoint(each.record.num_sessions, each.record.num_tokens, each.record.num_cached, ms)
            for each, ms in zip(records, elapsed, strict=True)
        ]
        return list(fit_passes(points)[0].weights)

    found = _fit_in_turn(
        records,
        fit,
        lambda weights, each: pass_ms(pass_times_of(weights), each),
        lambda weights, alone: weights[0] / alone,
    )
    times = pass_times_of(found.weights)
    extra_ms = extras([each.record for each in records], found.own_ms, times)
    return times.model_copy(update={"extra_ms": extra_ms}), found.slowdowns


def extras(records: Sequence[ComputeRecord], own_ms: Sequence[float], times: PassTimes) -> tuple[float, ...]:
    """Mean excess over the weighted sum of passes of 1, 2, … tokens; less where there are few of them.

    Kernels suit some sizes better than others, so the time of a small pass is no smooth function of its tokens.
    """
    sums, counts = [0.0] * MAX_EXTRAS, [0] * MAX_EXTRAS
    for record, elapsed_ms in zip(records, own_ms, strict=True):
        if record.num_tokens <= MAX_EXTRAS:
            sums[record.num_tokens - 1] += elapsed_ms - pass_ms(times, record)
            counts[record.num_tokens - 1] += 1
    return tuple(round(total / (count + FEW), 6) for total, count in zip(sums, counts, strict=True))


def shared_steps(phases: Sequence[CalibrationPhase], draft: str) -> SharedTimes:
    """Steps of the phases of one draft."""
    records = [
        SharedRecord(record, beside_ms(record, busy), draft)
        for each in phases
        for busy in [busy_times(each.phase.passes)]
        for log in each.phase.steps
        for record in log
    ]

    def fit(elapsed: Sequence[float]) -> list[float]:
        points = [
            StepPoint(each.record.num_cached, each.record.num_tokens, ms, each.record.num_sessions)
            for each, ms in zip(records, elapsed, strict=True)
        ]
        times = fit_steps(points)[0]
        known = (times.step_ms, times.step_ms_per_1000, times.fed_ms, times.session_ms)
        return [weight for weight in known if weight is not None]

    return _fit_in_turn(
        records, fit, lambda weights, each: step_ms(step_times_of(weights), each), lambda weights, alone: 0 * alone + 1
    )


def pass_ms(times: PassTimes, record: ComputeRecord) -> float:
    return times.pass_ms(record.num_sessions, record.num_tokens, record.num_cached)


def step_ms(times: StepTimes, record: ComputeRecord) -> float:
    return times.feed_ms(record.num_tokens, record.num_cached, record.num_sessions)


def _fit_in_turn(
    records: Sequence[SharedRecord],
    fit: Callable[[Sequence[float]], list[float]],
    predict: Callable[[Sequence[float], ComputeRecord], float],
    bound_of: Callable[[Sequence[float], NDArray[np.float64]], NDArray[np.float64]],
) -> SharedTimes:
    """bound_of: the share of the times alone that is slowed down."""
    if not records:
        raise NotCalibrated("no pass or no draft step ran")
    elapsed = np.array([each.record.elapsed_ms for each in records])
    beside = np.array([each.beside_ms for each in records])
    names = np.array([each.draft or "" for each in records])
    slowdowns, own = {str(name): 1.0 for name in np.unique(names) if name}, elapsed
    for _ in range(NUM_ROUNDS):
        weights = fit(own.tolist())
        alone = np.array([predict(weights, each.record) for each in records])
        bound = np.minimum(bound_of(weights, alone), 1.0)
        slowdowns = {name: _slowdown_of(elapsed, beside, alone, bound, names == name) for name in slowdowns}
        own = elapsed - beside * lost_share(np.array([slowdowns.get(str(name), 1.0) for name in names]), bound)
    return SharedTimes(weights, slowdowns, own.tolist())


def lost_share(slowdown: Any, bound: Any) -> Any:
    """The share of the time beside others that they cost. Numbers or arrays."""
    return 1 - 1 / (1 + (slowdown - 1) * bound)


def _slowdown_of(
    elapsed: NDArray[np.float64],
    beside: NDArray[np.float64],
    alone: NDArray[np.float64],
    bound: NDArray[np.float64],
    is_own: NDArray[np.bool_],
) -> float:
    """The one with the least squares of errors relative to the times alone."""
    x, y, z = (beside / alone)[is_own], (elapsed / alone - 1)[is_own], bound[is_own]
    errors = [float(((y - x * lost_share(slowdown, z)) ** 2).sum()) for slowdown in SLOWDOWNS]
    return float(SLOWDOWNS[int(np.argmin(errors))])


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


def pass_times_of(weights: Sequence[float]) -> PassTimes:
    """From PassTimes.weights."""
    base, session, token, above_8, above_32, above_128, cached = weights
    above = above_8, above_32, above_128
    return PassTimes(base_ms=base, session_ms=session, token_ms=token, above_ms=above, cached_ms=cached)


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
    due_s, num = phase.begin_s + sample.due_s, math.ceil(sample.num_prompt_tokens / PREFILL_CHUNK)
    own = [each for each in busy_times(phase.passes) if each.start_s >= due_s][:num]
    if len(own) < num:
        raise NotCalibrated("a request was answered without a pass")
    way_there_s, way_back_s = own[0].start_s - due_s, due_s + sample.first_s - own[-1].end_s
    return (way_there_s + way_back_s) * 1e3
