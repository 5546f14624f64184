"""A profile, phases of a calibration with known times, and a finished case of the validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.harness.latency import RequestSample
from benchmarks.harness.origin import Origin
from benchmarks.harness.scripted_controller import stop_and_wait
from benchmarks.standins.compute_log import ComputeRecord
from benchmarks.validation.bus_monitor import BusObservations
from benchmarks.validation.cases import INT8, ROUNDS, Case, RequestLoad, rtt
from benchmarks.validation.live import Phase
from benchmarks.validation.prediction import Prediction
from benchmarks.validation.results import CaseFigures, CaseResult, CaseRound, TargetOnlyRun, TimingDrift
from shared.data.profiles import MachineTimes, PassTimes, Profile, StepTimes

ORIGIN = Origin("python -m benchmarks.validation", "a machine", "a date", "3")
LIVE = CaseFigures(50.0, 100.0, 20.0, 3.0, 0.02, 0.8, 2.0)
PROFILE = Profile(
    name="torch-int8",
    origin="a test",
    verifier=PassTimes(base_ms=20.0),
    drafter=StepTimes(step_ms=8.0),
    machine=MachineTimes(request_ms=4.0),
)
CODE = "0123456789abcdef"
CASE = Case("test", "torch", RequestLoad(4, 2), INT8, stop_and_wait(4), rtt(10))
OTHER = replace(CASE, name="other")
ALONE = CaseFigures(25.0, 90.0, 40.0, 1.0, 0.02, None)


def sample(due_s: float, first_s: float, num_prompt_tokens: int = 40, num_tokens: int = 64) -> RequestSample:
    total_s = first_s + 0.5
    return RequestSample(0, due_s, 0.0, first_s, total_s, num_tokens=num_tokens, num_prompt_tokens=num_prompt_tokens)


def phase(
    passes: Sequence[ComputeRecord],
    steps: Sequence[ComputeRecord] = (),
    samples: Sequence[RequestSample] = (),
    rtt_ms: float | None = None,
) -> Phase:
    observed = BusObservations(0.02, rtt_ms)
    return Phase(0.0, 10.0, list(samples), [None] * len(samples), observed, 1.0, [list(passes)], [list(steps)], [])


def result(case: Case = CASE, complaints: Sequence[str] = ()) -> CaseResult:
    """Its first two rounds differ by 2 ms in the time per token; complaints: about the first."""
    rounds = []
    for number, tpot_ms in enumerate((19.0, 21.0, *(20.0,) * (ROUNDS - 2))):
        beside = [TargetOnlyRun(replace(ALONE, tpot_ms=2 * tpot_ms + change), []) for change in (-1.0, 1.0)]
        drift = TimingDrift(passes=0.02 * (tpot_ms - 18.0), steps=-0.01, trip_ms=1.5)
        live, told = replace(LIVE, tpot_ms=tpot_ms), [] if number else list(complaints)
        rounds.append(CaseRound(live, [sample(0.0, 0.1)], [None], beside, drift, 15.0, told, 0))
    return CaseResult(case, CODE, rounds, ORIGIN)


def prediction(case: Case = CASE, complaints: Sequence[str] = (), **factors: float) -> Prediction:
    """A prediction of the live figures times `factors`."""
    simulated = replace(LIVE, **{name: getattr(LIVE, name) * factor for name, factor in factors.items()})
    return Prediction(result(case, complaints), simulated, ALONE)
