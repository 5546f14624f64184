"""The simulated counterpart of a case: a DSD-Sim scenario from the calibration, and its figures.

Invariant: of the judged run the scenario holds only the requests: arrival times, lengths of prompts and answers, and
drafters. All times are calibrated, and the guesses are recorded with other prompts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from benchmarks.harness.latency import RequestSample
from benchmarks.harness.simulation import closed_loop_workload, simulate_seeds
from benchmarks.validation.calibration import Calibration
from benchmarks.validation.cases import Case
from benchmarks.validation.record import DraftRecordings
from benchmarks.validation.requests import CaseRequest
from dsd_sim.scenario.scenario import Scenario

NUM_SEEDS = 20  # each draws other guesses from the recordings
TRACE = "requests.jsonl"


@dataclass(frozen=True, slots=True)
class CaseFigures:
    """The compared figures: means over answers or passes. `acceptance` is shown only; None: no drafters."""

    tokens_per_s: float
    ttft_ms: float
    tpot_ms: float
    acceptance_length: float
    queue: float  # utilisation at the end of passes
    acceptance: float | None


def scenario_of(
    case: Case,
    calibration: Calibration,
    recordings: DraftRecordings,
    requests: Sequence[CaseRequest],
    samples: Sequence[RequestSample],
    folder: Path,
) -> Scenario:
    """`samples` are in the order of `requests`. Writes the trace of an open loop into `folder`."""
    workload: dict[str, Any] = {"kind": "trace", "file": TRACE}
    if case.num_clients:
        num_tokens, think_s = requests[0].max_tokens, calibration.request_ms / 1000
        workload = closed_loop_workload(case.num_clients, len(requests), samples, num_tokens, think_s)
    else:
        write_trace(folder / TRACE, requests, samples)
    content = {
        "name": case.name,
        "workload": workload,
        "edge": [_edge(number, draft, calibration, recordings) for number, draft in enumerate(case.drafts)],
        "cloud": [{"count": case.num_verifiers, "times": calibration.pass_times.model_dump()}],
        "policies": {
            "routing": "jsq",  # the gateway's default
            "drafting": bool(case.drafts),
            "windows": "static",
            "window": case.choice.window,
            "chunk": case.choice.chunk,
            "free_run": case.choice.free_run,
        },
    }
    return Scenario.model_validate_json(json.dumps(content))  # lists become tuples there


def _edge(number: int, draft: str, calibration: Calibration, recordings: DraftRecordings) -> dict[str, Any]:
    return {
        "name": f"drafter-{number}",  # the name of the live one ends with it
        "count": 1,
        "times": calibration.step_times.model_dump(),
        "link": {"rtt_ms": calibration.rtt_ms},
        "guesses": {"kind": "recorded", "file": str(recordings.others(draft).absolute())},
    }


def write_trace(path: Path, requests: Sequence[CaseRequest], samples: Sequence[RequestSample]) -> None:
    """Writes arrival times, lengths and drafters of the requests."""
    lines = []
    for request, sample in zip(requests, samples, strict=True):
        line: dict[str, Any] = {
            "arrival_ms": sample.due_s * 1e3,
            "prompt_tokens": sample.num_prompt_tokens,
            "target_tokens": sample.num_tokens,
        }
        if request.drafter is not None:
            line["device_tier"] = request.drafter[request.drafter.index("drafter-") :]
        lines.append(msgspec.json.encode(line))
    path.write_bytes(b"\n".join(lines) + b"\n")


def simulate(scenario: Scenario, folder: Path, request_ms: float, num_seeds: int = NUM_SEEDS) -> CaseFigures:
    """Means over seeds. `folder` holds the trace; `request_ms` is added to the simulated TTFT."""
    reports = simulate_seeds(scenario, folder, num_seeds)
    return CaseFigures(
        tokens_per_s=fmean(report.tokens_per_s for report in reports),
        ttft_ms=fmean(report.ttft_ms.mean for report in reports) + request_ms,
        tpot_ms=fmean(report.tpot_ms.mean for report in reports),
        acceptance_length=fmean(report.acceptance_length for report in reports),
        queue=fmean(report.queue for report in reports),
        acceptance=fmean(report.acceptance for report in reports) if scenario.policies.drafting else None,
    )
