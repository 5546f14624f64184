"""The simulated counterpart of a case: a DSD-Sim scenario from the profile of its pair, and its figures.

Invariant: of the live run the scenario holds only the requests: arrival times, lengths of prompts and answers, and
drafters. All times come from the calibration, and the guesses are recorded with other prompts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec

from benchmarks.harness.latency import RequestSample
from benchmarks.harness.simulation import simulate_seeds
from benchmarks.validation.cases import SYSTEMS, Case
from benchmarks.validation.results import CaseFigures
from dsd_sim.scenario.scenario import Scenario
from shared.data.profiles import Profile

NUM_SEEDS = 20  # each draws other guesses from the recordings
TRACE = "requests.jsonl"


def scenario_of(
    case: Case,
    profile: Profile,
    recording: Path,
    drafters: Sequence[str | None],
    samples: Sequence[RequestSample],
    folder: Path,
) -> Scenario:
    """Writes the trace of an open loop into `folder`. recording: of the case's draft, or of any for its texts alone;
    `samples` and `drafters` are in the order of the requests."""
    system, choice = SYSTEMS[case.system], case.control
    if case.load.num_clients:
        workload = _closed_loop(case, samples)
    else:
        workload = {"kind": "trace", "file": TRACE}
        write_trace(folder / TRACE, drafters, samples)
    windows: dict[str, Any] = {"windows": choice}
    if not isinstance(choice, str):
        windows = {"windows": "static", "window": choice.window, "chunk": choice.chunk, "free_run": choice.free_run}
    names = [f"drafter-{number}" for number, draft in enumerate(system.drafts) if draft == case.draft]
    content = {
        "name": case.name,
        "workload": workload,
        "edge": [_edge(name, case, profile, recording) for name in names],
        "cloud": [{"count": system.num_verifiers, "times": profile.pass_times.model_dump()}],
        "machine": {"times": profile.machine_times.model_dump()},
        "lookup": None if system.is_replayed else {"file": str(recording.absolute())},  # stand-ins have no texts
        "policies": {"routing": "jsq", "drafting": bool(names), **windows},  # jsq: the gateway's default
        "failure": _failures(case),
    }
    return Scenario.model_validate_json(json.dumps(content))  # lists become tuples there


def _closed_loop(case: Case, samples: Sequence[RequestSample]) -> dict[str, Any]:
    """With the lengths of the live run's prompts and answers."""
    return {
        "kind": "closed",
        "num_clients": case.load.num_clients,
        "num_requests": case.load.num_requests,
        "lengths": {
            "prompt": _histogram([sample.num_prompt_tokens for sample in samples]),
            "answer": _histogram([sample.num_tokens for sample in samples]),
            "max_tokens": max(sample.num_tokens for sample in samples),
        },
    }


def _histogram(values: Sequence[int]) -> dict[str, list[int]]:
    counts = Counter(values)
    lengths = range(min(counts), max(counts) + 1)
    return {"edges": [*lengths, lengths.stop], "counts": [counts[length] for length in lengths]}


def _edge(name: str, case: Case, profile: Profile, recording: Path) -> dict[str, Any]:
    link = case.link
    return {
        "name": name,
        "count": 1,
        "times": profile.step_times.model_dump(),
        "link": {
            "rtt_ms": 2 * link.delay_ms,
            "jitter_ms": link.jitter_ms,
            "stall_rate": link.stall_rate,
            "stall_ms": link.stall_ms,
        },
        "guesses": {"kind": "recorded", "file": str(recording.absolute())},
    }


def _failures(case: Case) -> list[dict[str, Any]]:
    if case.outage is None:
        return []
    return [{"part": "links", "at_s": at_s, "for_s": case.outage.for_s} for at_s in case.outage.starts_s]


def write_trace(path: Path, drafters: Sequence[str | None], samples: Sequence[RequestSample]) -> None:
    """Writes arrival times, lengths and drafters of the requests."""
    lines = []
    for drafter, sample in zip(drafters, samples, strict=True):
        line: dict[str, Any] = {
            "arrival_ms": sample.due_s * 1e3,
            "prompt_tokens": sample.num_prompt_tokens,
            "target_tokens": sample.num_tokens,
        }
        if drafter is not None:
            line["device_tier"] = drafter
        lines.append(msgspec.json.encode(line))
    path.write_bytes(b"\n".join(lines) + b"\n")


def simulate(scenario: Scenario, folder: Path, number: int = 0, num_seeds: int = NUM_SEEDS) -> CaseFigures:
    """Means over seeds. `folder` holds the trace. number: of the round; each draws guesses of its own."""
    reports = simulate_seeds(scenario, folder, num_seeds, first_seed=1 + number * num_seeds)
    return CaseFigures(
        tokens_per_s=fmean(report.tokens_per_s for report in reports),
        ttft_ms=fmean(report.ttft_ms.mean for report in reports),
        tpot_ms=fmean(report.tpot_ms.mean for report in reports),
        acceptance_length=fmean(report.acceptance_length for report in reports),
        queue=fmean(report.queue for report in reports),
        acceptance=fmean(report.acceptance for report in reports) if scenario.policies.drafting else None,
        guesses=fmean(report.guesses_per_token for report in reports) if scenario.policies.drafting else None,
    )
