"""DSD-Sim as the counterpart of a live measurement: its closed-loop workload, and its reports over several seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from awc.policy import WindowPolicy
from benchmarks.harness.latency import RequestSample
from dsd_sim.scenario.build import make_fleet
from dsd_sim.scenario.scenario import Scenario
from dsd_sim.studies.report import SimReport, report_of


def closed_loop_workload(
    num_clients: int, num_requests: int, samples: Sequence[RequestSample], num_tokens: int, think_s: float
) -> dict[str, Any]:
    """Closed loop with the prompt lengths of `samples` and answers of `num_tokens` tokens.

    think_s: pause of a client between two requests. Use it for gateway time that the simulator does not model.
    """
    counts = Counter(sample.num_prompt_tokens for sample in samples)
    lengths = range(min(counts), max(counts) + 1)
    prompt = {"edges": [*lengths, lengths.stop], "counts": [counts[length] for length in lengths]}
    return {
        "kind": "closed",
        "num_clients": num_clients,
        "think_s": think_s,
        "num_requests": num_requests,
        "lengths": {"prompt": prompt, "answer": num_tokens, "max_tokens": num_tokens},
    }


def simulate_seeds(
    scenario: Scenario,
    folder: Path,
    num_seeds: int,
    make_policy: Callable[[], WindowPolicy] | None = None,
    first_seed: int = 1,
) -> list[SimReport]:
    """Reports of `num_seeds` seeds. The scenario's files are relative to `folder`. make_policy: in place of the policy
    that the scenario names."""
    reports = []
    for seed in range(first_seed, first_seed + num_seeds):
        seeded = scenario.model_copy(update={"seed": seed})
        fleet = make_fleet(seeded, folder)
        if make_policy is not None:
            fleet.policy, fleet.is_watched = make_policy(), True
        fleet.run()
        reports.append(report_of(seeded, fleet))
    return reports
