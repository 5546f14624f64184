"""Calibrates the simulator from a running cell: the durations of its parts, by the compute logs. Pure.

Invariant: only durations of parts are used: passes, draft steps, the gaps between them, the round trip, and the way of
a request to its first pass and back. Throughput and latency of answers are not used.

A simulated stop-and-wait round then consists of draft steps with a gap after each, one round trip as the drafter
measures it, and a pass with the gap after it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from scipy.optimize import lsq_linear

from benchmarks.harness.latency import RequestSample
from benchmarks.standins.timed import ComputeRecord
from benchmarks.validation.requests import Phase
from model_zoo.measuring.profile import PassPoint, StepPoint, fit_passes, fit_steps, step_times_of
from services.cloud_verifier.settings import VerifierSettings
from shared.data.profiles import PassTimes, StepTimes

LARGE = 32  # tokens: larger passes are bound by compute, not by memory bandwidth
PREFILL_CHUNK = int(VerifierSettings.model_fields["prefill_chunk"].default)


class NotCalibrated(ValueError):
    """The logs hold too little to calibrate from."""


@dataclass(frozen=True, slots=True)
class ComputeLogs:
    """The log of each verifier and of each drafter, by time."""

    passes: list[list[ComputeRecord]]
    steps: list[list[ComputeRecord]]

    def within(self, phase: Phase) -> ComputeLogs:
        """The records that start and end in a phase."""

        def part(log: list[ComputeRecord]) -> list[ComputeRecord]:
            return [each for each in log if phase.begin_s <= each.start_s and each.end_s <= phase.end_s]

        return ComputeLogs([part(log) for log in self.passes], [part(log) for log in self.steps])

    @property
    def all_passes(self) -> list[ComputeRecord]:
        return sorted((each for log in self.passes for each in log), key=lambda each: each.start_s)

    @property
    def all_steps(self) -> list[ComputeRecord]:
        return [each for log in self.steps for each in log]


@dataclass(frozen=True, slots=True)
class KnownTimes:
    """Profile times of stand-ins; None: to be fitted."""

    passes: PassTimes | None = None
    steps: StepTimes | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Times in milliseconds. Without drafters `steps` is empty, and `step_gap_ms` and `rtt_ms` are 0."""

    passes: list[float]  # PassTimes.weights, of the model alone
    steps: list[float]  # as `step_times_of` takes them, of the model alone
    pass_gap_ms: float  # from the end of a pass to the start of the next, while sessions wait
    session_gap_ms: float  # added to it for each session of the pass
    step_gap_ms: float  # from the end of a draft step to the start of the next
    request_ms: float  # from the client to the first pass, and back with the first token
    rtt_ms: float  # from drafter to verifier and back, as drafters report it
    num_passes: int
    num_steps: int

    @property
    def pass_times(self) -> PassTimes:
        """Times of simulated passes. They include the gap, since simulated passes follow each other without one."""
        base, session, *rest = self.passes
        return pass_times_of([base + self.pass_gap_ms, session + self.session_gap_ms, *rest])

    @property
    def step_times(self) -> StepTimes:
        """Times of simulated draft steps, gap included."""
        first, *rest = self.steps
        return step_times_of([first + self.step_gap_ms, *rest])


@dataclass(frozen=True, slots=True)
class TimingDrift:
    """The judged run: relative excess of passes and steps over the calibration, and its round trip. None: no data."""

    passes: float
    large_passes: float | None  # passes over more than LARGE tokens
    steps: float | None
    rtt_ms: float | None


def pass_times_of(weights: Sequence[float]) -> PassTimes:
    """From PassTimes.weights."""
    base, session, token, above_8, above_32, above_128, cached = weights
    above = above_8, above_32, above_128
    return PassTimes(base_ms=base, session_ms=session, token_ms=token, above_ms=above, cached_ms=cached)


def calibrate(
    logs: ComputeLogs, known: KnownTimes, alone: Phase, busy: Phase, load: Sequence[Phase], rtt_ms: float | None
) -> Calibration:
    """Fits all times. Raises NotCalibrated.

    alone: one answer after another, target-only. busy: windows so large that models never wait. load: the load to be
    simulated, before and after the judged run, with its round trip `rtt_ms`.
    """
    if logs.steps and rtt_ms is None:
        raise NotCalibrated("no drafter reported a round trip")
    loaded, saturated = [logs.within(phase) for phase in load], logs.within(busy)
    base_gap, session_gap = fit_gaps(saturated.passes)
    passes = [each for part in loaded for each in part.all_passes]
    steps = [each for part in loaded for each in part.all_steps]
    requests = [overhead_ms(sample, alone, logs.all_passes) for sample in alone.samples]
    return Calibration(
        passes=pass_weights(passes, known.passes),
        steps=step_weights(steps, known.steps) if logs.steps else [],
        pass_gap_ms=base_gap,
        session_gap_ms=session_gap,
        step_gap_ms=median(gaps_ms(saturated.steps)) if logs.steps else 0.0,
        request_ms=max(0.0, median(requests) - base_gap - session_gap),  # the simulated pass includes its gap
        rtt_ms=rtt_ms or 0.0,
        num_passes=len(passes),
        num_steps=len(steps),
    )


def pass_weights(passes: Sequence[ComputeRecord], known: PassTimes | None) -> list[float]:
    """Known or fitted weights, scaled so that their sum over all passes equals the measured time."""
    if not passes:
        raise NotCalibrated("no pass ran under load")
    points = [PassPoint(each.num_sessions, each.num_tokens, each.num_cached, each.elapsed_ms) for each in passes]
    times = known or fit_passes(points)[0]
    scale = 1 + excess(passes, times)
    return [scale * weight for weight in times.weights]


def step_weights(steps: Sequence[ComputeRecord], known: StepTimes | None) -> list[float]:
    """As pass_weights, for draft steps."""
    if not steps:
        raise NotCalibrated("no draft step ran under load")
    points = [StepPoint(each.num_cached, each.num_tokens, each.elapsed_ms, each.num_sessions) for each in steps]
    times = known or fit_steps(points)[0]
    scale = 1 + excess(steps, times)
    weights = (times.step_ms, times.step_ms_per_1000, times.fed_ms, times.session_ms)
    return [scale * weight for weight in weights if weight is not None]


def excess(computed: Sequence[ComputeRecord], times: PassTimes | StepTimes) -> float:
    """Relative excess of the total measured time over the predicted one."""
    return sum(each.elapsed_ms for each in computed) / sum(_predicted_ms(each, times) for each in computed) - 1


def _predicted_ms(each: ComputeRecord, times: PassTimes | StepTimes) -> float:
    if isinstance(times, PassTimes):
        return times.pass_ms(each.num_sessions, each.num_tokens, each.num_cached)
    return times.feed_ms(each.num_tokens, each.num_cached, each.num_sessions)


def drift_of(calibration: Calibration, judged: ComputeLogs, rtt_ms: float | None) -> TimingDrift:
    """The judged run against the calibration."""
    passes, steps, times = judged.all_passes, judged.all_steps, pass_times_of(calibration.passes)
    large = [each for each in passes if each.num_tokens > LARGE]
    return TimingDrift(
        passes=excess(passes, times),
        large_passes=excess(large, times) if large else None,
        steps=excess(steps, step_times_of(calibration.steps)) if steps else None,
        rtt_ms=rtt_ms,
    )


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


def overhead_ms(sample: RequestSample, phase: Phase, passes: Sequence[ComputeRecord]) -> float:
    """Time to the first token of a lone request, minus the passes over its prompt."""
    if sample.first_s is None:
        raise NotCalibrated(f"a request failed: {sample.status}")
    due_s, num = phase.begin_s + sample.due_s, math.ceil(sample.num_prompt_tokens / PREFILL_CHUNK)
    own = [each for each in passes if each.start_s >= due_s][:num]
    if len(own) < num:
        raise NotCalibrated("a request was answered without a pass")
    way_there_s, way_back_s = own[0].start_s - due_s, due_s + sample.first_s - own[-1].end_s
    return (way_there_s + way_back_s) * 1e3
