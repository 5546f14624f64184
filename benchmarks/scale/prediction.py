"""DSD-Sim's side of a cell: the factor of its times, and its TPOT, TTFT and throughput.

Invariant: of the live cell a prediction takes the lengths of prompts and the gaps between its passes, which are
durations of parts. Latencies and throughput of the live cell are not used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.scale.cells import Cell
from benchmarks.scale.results import CellResult, PassGap, Prediction
from benchmarks.scale.system import GUESSES, KV_TOKENS, TOKEN_BUDGET, answered, answers, times_of
from dsd_sim.scenario.build import make_fleet
from dsd_sim.scenario.scenario import Scenario
from dsd_sim.studies.measured import MeasuredPart
from dsd_sim.studies.report import SimReport, report_of
from shared.data.recording import Recording, read_recording

PROMPT_TOKENS = 50  # of a prompt, template included, where no live cell says more
NUM_SEEDS = 3
ANSWERS_EACH = 4  # of a client, with the first
WARM_UP = 0.3  # share of the requests, the first ones
RECORDING = "recording.jsonl"
NO_GAP = PassGap(0.0, 0.0)


def scenario_of(cell: Cell, slower: float, prompt_tokens: Sequence[int], gap: PassGap, folder: Path) -> Scenario:
    """The cell as a scenario. Writes its recording into `folder`."""
    recorded = [answered([1], each, cell) for each in answers() if len(each.target_ids) >= cell.answer_tokens]
    Recording(read_recording(GUESSES).header, tuple(recorded)).write(folder / RECORDING)
    times = times_of(slower)
    content: dict[str, Any] = {
        "name": cell.name,
        "workload": {
            "kind": "closed",
            "num_clients": cell.sessions,
            "num_requests": ANSWERS_EACH * cell.sessions,
            "lengths": {
                "prompt": {"low": min(prompt_tokens), "high": max(prompt_tokens)},
                "answer": cell.answer_tokens,
                "max_tokens": cell.answer_tokens,
            },
        },
        "edge": [
            {
                "count": cell.drafters,
                "times": times.step_times.model_dump(),
                "link": {"rtt_ms": 0.0},
                "guesses": {"kind": "recorded", "file": RECORDING},
            }
        ],
        "cloud": [
            {
                "count": cell.verifiers,
                "times": times.pass_times.model_dump(),
                "token_budget": TOKEN_BUDGET,
                "kv_tokens": KV_TOKENS,
            }
        ],
        "machine": {"times": {"pass_gap_ms": gap.pass_ms, "session_gap_ms": gap.session_ms}},
        "policies": {"windows": "adaptive"},
    }
    return Scenario.model_validate_json(json.dumps(content))  # lists become tuples there


def simulate(scenario: Scenario, folder: Path, seed: int) -> SimReport:
    """The report of the part of a run in which all sessions are open."""
    seeded = scenario.model_copy(update={"seed": seed})
    fleet, measured = make_fleet(seeded, folder), MeasuredPart(WARM_UP)
    fleet.on_arrival = measured.arrive
    fleet.run()
    return report_of(seeded, fleet, measured)


def factor_of(cell: Cell) -> float:
    """How much longer the models' times must be for the cell's rate of tokens."""
    with TemporaryDirectory(prefix="dsd-scale-") as place:
        scenario = scenario_of(cell, 1.0, [PROMPT_TOKENS], NO_GAP, Path(place))
        return float(f"{simulate(scenario, Path(place), seed=1).tokens_per_s / cell.tokens_per_s:.3g}")


def predict(result: CellResult) -> Prediction:
    """Means over seeds, which draw other guesses."""
    with TemporaryDirectory(prefix="dsd-scale-") as place:
        folder = Path(place)
        scenario = scenario_of(result.cell, result.slower, result.prompt_tokens, result.gap, folder)
        reports = [simulate(scenario, folder, seed) for seed in range(1, NUM_SEEDS + 1)]
    return Prediction(
        fmean(each.tokens_per_s for each in reports),
        fmean(each.tpot_ms.mean for each in reports),
        fmean(each.ttft_ms.mean for each in reports),
    )
