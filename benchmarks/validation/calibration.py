"""What the simulator is told of a running cell: how long its parts take, as clocks around the models tell. Pure.

Invariant: only times of parts enter, each measured where it passes: passes, draft steps, what lies between two of them,
a round trip, a request's way to its first pass and back. No throughput and no latency of an answer does.

A round of stop-and-wait is then what it is in a cell: steps, each with the gap behind it, one round trip as the drafter
measures it, a pass and the gap behind that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from scipy.optimize import lsq_linear

from benchmarks.harness.latency import Sample
from benchmarks.validation.clock import Computed
from benchmarks.validation.load import Phase
from model_zoo.measuring.profile import PassPoint, StepPoint, fit_passes, fit_steps
from services.cloud_verifier.settings import VerifierSettings
from shared.data.profiles import PassTimes, StepTimes

LARGE = 32  # tokens: passes with more compute rather than read weights, and feel other things on a machine
PREFILL_CHUNK = int(VerifierSettings.model_fields["prefill_chunk"].default)


class NotCalibrated(ValueError):
    """Too little was computed to know how long it takes."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """What each verifier and each drafter noted, in the order of time."""

    passes: list[list[Computed]]
    steps: list[list[Computed]]

    def within(self, phase: Phase) -> Clocks:
        """What was computed in a phase, from beginning to end."""

        def part(notes: list[Computed]) -> list[Computed]:
            return [each for each in notes if phase.begin_s <= each.start_s and each.end_s <= phase.end_s]

        return Clocks([part(notes) for notes in self.passes], [part(notes) for notes in self.steps])

    @property
    def all_passes(self) -> list[Computed]:
        return sorted((each for notes in self.passes for each in notes), key=lambda each: each.start_s)

    @property
    def all_steps(self) -> list[Computed]:
        return [each for notes in self.steps for each in notes]


@dataclass(frozen=True, slots=True)
class Known:
    """The times of stand-ins, where models are such; None: to be found out."""

    passes: PassTimes | None = None
    steps: StepTimes | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Milliseconds. Without drafters `steps` is empty and what concerns them is 0."""

    passes: list[float]  # PassTimes.weights, of the model alone
    steps: list[float]  # likewise the three of StepTimes
    pass_gap_ms: float  # from the end of a pass to the beginning of the next, when sessions wait for it
    session_gap_ms: float  # more of it for each session of the pass
    step_gap_ms: float  # likewise between draft steps
    request_ms: float  # from the client to the first pass, and back with the first token
    rtt_ms: float  # from drafter to verifier and back, as drafters report it
    num_passes: int
    num_steps: int

    @property
    def pass_times(self) -> PassTimes:
        """Of the simulated verifiers, whose passes follow each other without a gap."""
        base, session, *rest = self.passes
        return pass_times_of([base + self.pass_gap_ms, session + self.session_gap_ms, *rest])

    @property
    def step_times(self) -> StepTimes:
        """Likewise of the drafters."""
        first, *rest = self.steps
        return step_times_of([first + self.step_gap_ms, *rest])


@dataclass(frozen=True, slots=True)
class Drift:
    """How much longer than the calibration says passes and steps took in the judged run, as shares, and the round trip
    then, in milliseconds. None: there were none."""

    passes: float
    large_passes: float | None  # those of them with more than LARGE tokens
    steps: float | None
    rtt_ms: float | None


def pass_times_of(weights: Sequence[float]) -> PassTimes:
    """From PassTimes.weights."""
    base, session, token, above_8, above_32, above_128, cached = weights
    above = above_8, above_32, above_128
    return PassTimes(base_ms=base, session_ms=session, token_ms=token, above_ms=above, cached_ms=cached)


def step_times_of(weights: Sequence[float]) -> StepTimes:
    step, per_1000, fed = weights
    return StepTimes(step_ms=step, step_ms_per_1000=per_1000, fed_ms=fed)


def calibrate(
    clocks: Clocks, known: Known, alone: Phase, busy: Phase, load: Sequence[Phase], rtt_ms: float | None
) -> Calibration:
    """`alone`: one answer after the other, target-only. `busy`: nobody waits for anybody, so that models work all the
    time. `load`: as what is to be simulated, with its round trip, before and behind it. Raises NotCalibrated."""
    if clocks.steps and rtt_ms is None:
        raise NotCalibrated("no drafter has told its round trip")
    loaded, hurried = [clocks.within(phase) for phase in load], clocks.within(busy)
    base_gap, session_gap = fit_gaps(hurried.passes)
    passes = [each for part in loaded for each in part.all_passes]
    steps = [each for part in loaded for each in part.all_steps]
    requests = [overhead_ms(sample, alone, clocks.all_passes) for sample in alone.samples]
    return Calibration(
        passes=pass_weights(passes, known.passes),
        steps=step_weights(steps, known.steps) if clocks.steps else [],
        pass_gap_ms=base_gap,
        session_gap_ms=session_gap,
        step_gap_ms=median(gaps_ms(hurried.steps)) if clocks.steps else 0.0,
        request_ms=max(0.0, median(requests) - base_gap - session_gap),  # the simulated pass has its gap with it
        rtt_ms=rtt_ms or 0.0,
        num_passes=len(passes),
        num_steps=len(steps),
    )


def pass_weights(passes: Sequence[Computed], known: PassTimes | None) -> list[float]:
    """Fitted where not known, and in any case scaled so that all passes together take as long as they did."""
    if not passes:
        raise NotCalibrated("no pass was made under load")
    points = [PassPoint(each.num_sessions, each.num_tokens, each.num_cached, each.elapsed_ms) for each in passes]
    times = known or fit_passes(points)[0]
    scale = 1 + excess(passes, times)
    return [scale * weight for weight in times.weights]


def step_weights(steps: Sequence[Computed], known: StepTimes | None) -> list[float]:
    """Likewise."""
    if not steps:
        raise NotCalibrated("no draft step was made under load")
    points = [StepPoint(each.num_cached, each.num_tokens, each.elapsed_ms) for each in steps]
    times = known or fit_steps(points)[0]
    scale = 1 + excess(steps, times)
    return [scale * weight for weight in (times.step_ms, times.step_ms_per_1000, times.fed_ms)]


def excess(computed: Sequence[Computed], times: PassTimes | StepTimes) -> float:
    """By which share all of these took longer than these times say."""
    return sum(each.elapsed_ms for each in computed) / sum(_predicted_ms(each, times) for each in computed) - 1


def _predicted_ms(each: Computed, times: PassTimes | StepTimes) -> float:
    if isinstance(times, PassTimes):
        return times.pass_ms(each.num_sessions, each.num_tokens, each.num_cached)
    return times.feed_ms(each.num_tokens, each.num_cached)


def drift_of(calibration: Calibration, judged: Clocks, rtt_ms: float | None) -> Drift:
    """Of what was computed in the judged run."""
    passes, steps, times = judged.all_passes, judged.all_steps, pass_times_of(calibration.passes)
    large = [each for each in passes if each.num_tokens > LARGE]
    return Drift(
        passes=excess(passes, times),
        large_passes=excess(large, times) if large else None,
        steps=excess(steps, step_times_of(calibration.steps)) if steps else None,
        rtt_ms=rtt_ms,
    )


def gaps_ms(notes: Sequence[Sequence[Computed]]) -> list[float]:
    """Between each two that follow each other at one instance. Raises NotCalibrated where there are none."""
    found = [(b.start_s - a.end_s) * 1e3 for each in notes for a, b in itertools.pairwise(each)]
    if not found:
        raise NotCalibrated("no two passes or steps followed each other")
    return found


def fit_gaps(passes: Sequence[Sequence[Computed]]) -> tuple[float, float]:
    """Milliseconds behind any pass, and more for each session in it: a line through the median gap of each number of
    sessions, so that a wait now and then changes little."""
    by_sessions: dict[int, list[float]] = {}
    for each in passes:
        for a, b in itertools.pairwise(each):
            by_sessions.setdefault(a.num_sessions, []).append((b.start_s - a.end_s) * 1e3)
    if not by_sessions:
        raise NotCalibrated("no two passes followed each other")
    if len(by_sessions) == 1:
        return median(next(iter(by_sessions.values()))), 0.0
    weights = np.sqrt([len(gaps) for gaps in by_sessions.values()])
    features = np.array([[1.0, num] for num in by_sessions]) * weights[:, None]
    middles = np.array([median(gaps) for gaps in by_sessions.values()]) * weights
    base, session = lsq_linear(features, middles, bounds=(0, np.inf)).x
    return float(base), float(session)


def overhead_ms(sample: Sample, phase: Phase, passes: Sequence[Computed]) -> float:
    """What a request took up to its first token beside the passes over its prompt, when it was the only one."""
    if sample.first_s is None:
        raise NotCalibrated(f"a request came to {sample.status}")
    due_s, num = phase.begin_s + sample.due_s, math.ceil(sample.num_prompt_tokens / PREFILL_CHUNK)
    own = [each for each in passes if each.start_s >= due_s][:num]
    if len(own) < num:
        raise NotCalibrated("a request was answered without a pass")
    way_there_s, way_back_s = own[0].start_s - due_s, due_s + sample.first_s - own[-1].end_s
    return (way_there_s + way_back_s) * 1e3
