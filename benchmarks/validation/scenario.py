"""The simulated counterpart of a case: a scenario of DSD-Sim from what was calibrated, and what it shows.

Invariant: of the run that it is compared with a scenario knows the requests alone: when they came, how long prompts and
answers were, who was to draft. Times are the calibration's, guesses those recorded with other prompts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from benchmarks.harness.latency import Sample
from benchmarks.validation.calibration import Calibration
from benchmarks.validation.cases import Case
from benchmarks.validation.load import Request
from benchmarks.validation.record import Recordings
from dsd_sim.scenario.build import make_fleet
from dsd_sim.scenario.scenario import Scenario
from dsd_sim.studies.report import SimReport, report_of

NUM_SEEDS = 20  # a simulation draws its guesses from the recordings anew with each
TRACE = "requests.jsonl"


@dataclass(frozen=True, slots=True)
class Figures:
    """What is compared, means over answers or passes; `acceptance`, of guesses, explains (None: no drafters)."""

    tokens_per_s: float
    ttft_ms: float
    tpot_ms: float
    acceptance_length: float
    queue: float  # utilisation, at the ends of passes
    acceptance: float | None


def scenario_of(
    case: Case,
    calibration: Calibration,
    recordings: Recordings,
    requests: Sequence[Request],
    samples: Sequence[Sample],
    folder: Path,
) -> Scenario:
    """`samples`: of the requests, in their order. Writes the trace of an open loop into `folder`."""
    workload: dict[str, Any] = {"kind": "trace", "file": TRACE}
    if case.num_clients:
        answer, think_s = requests[0].max_tokens, calibration.request_ms / 1000
        workload = closed_loop(case.num_clients, len(requests), samples, answer, think_s)
    else:
        write_trace(folder / TRACE, requests, samples)
    content = {
        "name": case.name,
        "workload": workload,
        "edge": [_edge(number, draft, calibration, recordings) for number, draft in enumerate(case.drafts)],
        "cloud": [{"count": case.num_verifiers, "times": calibration.pass_times.model_dump()}],
        "policies": {
            "routing": "jsq",  # as the gateway's default
            "drafting": bool(case.drafts),
            "windows": "static",
            "window": case.choice.window,
            "chunk": case.choice.chunk,
            "free_run": case.choice.free_run,
        },
    }
    return Scenario.model_validate_json(json.dumps(content))  # lists become tuples there


def closed_loop(
    num_clients: int, num_requests: int, samples: Sequence[Sample], answer: int, think_s: float
) -> dict[str, Any]:
    """A workload with prompts as long as those of `samples`. `think_s`, between answers, is what the simulator knows
    nothing of: the time that a gateway takes for a request beside its session."""
    counts = Counter(sample.num_prompt_tokens for sample in samples)
    lengths = range(min(counts), max(counts) + 1)
    prompt = {"edges": [*lengths, lengths.stop], "counts": [counts[length] for length in lengths]}
    return {
        "kind": "closed",
        "num_clients": num_clients,
        "think_s": think_s,
        "num_requests": num_requests,
        "lengths": {"prompt": prompt, "answer": answer, "max_tokens": answer},
    }


def _edge(number: int, draft: str, calibration: Calibration, recordings: Recordings) -> dict[str, Any]:
    return {
        "name": tier(number),
        "count": 1,
        "times": calibration.step_times.model_dump(),
        "link": {"rtt_ms": calibration.rtt_ms},
        "guesses": {"kind": "recorded", "file": str(recordings.others(draft).absolute())},
    }


def tier(number: int) -> str:
    """The name of a simulated drafter, in which a live one's name ends."""
    return f"drafter-{number}"


def write_trace(path: Path, requests: Sequence[Request], samples: Sequence[Sample]) -> None:
    """When requests were due, how long they were, and who was to draft."""
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


def simulate(scenario: Scenario, folder: Path, request_ms: float, num_seeds: int = NUM_SEEDS) -> Figures:
    """Means over seeds. `folder`: of its trace; request_ms: comes to each TTFT (see closed_loop)."""
    reports = [_report(scenario.model_copy(update={"seed": seed}), folder) for seed in range(1, num_seeds + 1)]
    return Figures(
        tokens_per_s=fmean(report.tokens_per_s for report in reports),
        ttft_ms=fmean(report.ttft_ms.mean for report in reports) + request_ms,
        tpot_ms=fmean(report.tpot_ms.mean for report in reports),
        acceptance_length=fmean(report.acceptance_length for report in reports),
        queue=fmean(report.queue for report in reports),
        acceptance=fmean(report.acceptance for report in reports) if scenario.policies.drafting else None,
    )


def _report(scenario: Scenario, folder: Path) -> SimReport:
    fleet = make_fleet(scenario, folder)
    fleet.run()
    return report_of(scenario, fleet)
