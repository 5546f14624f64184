"""A finished case of the validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.harness.origin import Origin
from benchmarks.harness.scripted_controller import stop_and_wait
from benchmarks.validation.calibration import Calibration, TimingDrift
from benchmarks.validation.case_run import CaseResult
from benchmarks.validation.cases import NUM_TOKENS, Case
from benchmarks.validation.scenario import CaseFigures

ORIGIN = Origin("python -m benchmarks.validation", "a machine", "a date", "3")
LIVE = CaseFigures(50.0, 100.0, 20.0, 3.0, 0.02, 0.8)
CALIBRATION = Calibration(
    passes=[20.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    steps=[8.0, 0.0, 0.0],
    pass_gap_ms=0.0,
    session_gap_ms=0.0,
    step_gap_ms=0.0,
    request_ms=4.0,
    rtt_ms=10.0,
    num_passes=100,
    num_steps=100,
)
CODE = "0123456789abcdef"
CASE = Case("test", "real", ("int8",), stop_and_wait(4), num_clients=2, num_requests=4)


def result(case: Case = CASE, complaints: Sequence[str] = (), **factors: float) -> CaseResult:
    """A result whose simulated figures are the live ones times `factors`."""
    simulated = replace(LIVE, **{name: getattr(LIVE, name) * factor for name, factor in factors.items()})
    drift = TimingDrift(passes=0.04, large_passes=0.2, steps=-0.01, rtt_ms=11.0)
    return CaseResult(case, NUM_TOKENS, CODE, LIVE, simulated, CALIBRATION, drift, 30.0, list(complaints), ORIGIN)
