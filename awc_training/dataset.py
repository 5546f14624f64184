"""Labelled telemetry for both networks: python -m awc_training dataset.

Inputs of a row: the mean reports of a scenario under one choice. Targets: the results under all choices.

Invariant: rows of a scenario are adjacent, and the same number of scenarios gives the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from awc.estimators.features import choice_inputs, window_inputs
from awc.policies.adaptive import CHOICES
from awc_training.runs import SLIDING, STOP_AND_WAIT, Reports, run, static_cell
from awc_training.scenarios import TRAINING, drawn
from dsd_sim.scenario.scenario import Scenario
from dsd_sim.studies.cells import Cell
from dsd_sim.studies.report import SimReport

CLOUD_ONLY = 1  # input for window 0
CLOUD_ONLY_LABEL = -2  # target for window 0; the decision threshold 1 lies halfway to the usual windows
WINDOWS = (0, *range(2, 13))
LEAST_WORTH = -0.7  # lower bound of a target: how bad the worst choices are need not be learned
NUM_SCENARIOS = 2200

Rows: TypeAlias = tuple[list[list[float]], list[list[float]]]  # inputs, targets


@dataclass(frozen=True, slots=True)
class Dataset:
    inputs: NDArray[np.float64]  # [rows, inputs]
    targets: NDArray[np.float64]  # [rows, outputs]
    groups: NDArray[np.int64]  # [rows] index of the scenario


def make_datasets(folder: Path, num: int, workers: int | None) -> tuple[Dataset, Dataset]:
    """The datasets of wc-dnn and adaptive. `folder`: of the results of runs, which are reused."""
    scenarios = [each.scenario for each in drawn(TRAINING, num)]
    waiting = [[static_cell(each, STOP_AND_WAIT, STOP_AND_WAIT.choice(w)) for w in WINDOWS] for each in scenarios]
    sliding = [[static_cell(each, SLIDING, choice) for choice in CHOICES] for each in scenarios]
    reports = run((cell for row in (*waiting, *sliding) for cell in row), folder, workers)
    return _gathered(waiting, reports, window_rows), _gathered(sliding, reports, choice_rows)


def _gathered(
    cells: Iterable[Sequence[Cell]], reports: Reports, rows_of: Callable[[Scenario, Sequence[SimReport]], Rows]
) -> Dataset:
    inputs: list[list[float]] = []
    targets: list[list[float]] = []
    groups: list[int] = []
    for number, row in enumerate(cells):
        found = rows_of(row[0].scenario, [reports[cell.key] for cell in row])
        inputs += found[0]
        targets += found[1]
        groups += [number] * len(found[0])
    return Dataset(np.array(inputs), np.array(targets), np.array(groups))


def window_rows(scenario: Scenario, found: Sequence[SimReport]) -> Rows:
    """Rows of wc-dnn (arXiv 2511.21669): one for each of WINDOWS; target: the window with the best score."""
    best = WINDOWS[int(np.argmax([report.soft_goodput for report in found]))]
    known = _acceptance_when_drafting(found)
    inputs = []
    for window, report in zip(WINDOWS, found, strict=True):
        seen = report.seen
        if seen is not None:
            acceptance = seen.acceptance if window else known
            inputs.append(window_inputs(seen.queue, acceptance, seen.rtt_ms, seen.tpot_ms, window or CLOUD_ONLY))
    return inputs, [[float(best or CLOUD_ONLY_LABEL)]] * len(inputs)


def choice_rows(scenario: Scenario, found: Sequence[SimReport]) -> Rows:
    """Rows of adaptive: one for each of CHOICES; targets: the worth of every choice minus the best worth."""
    worths = np.array([worth_of(report) for report in found])
    worth = np.maximum(worths - worths.max(), LEAST_WORTH).tolist()
    known, times = _acceptance_when_drafting(found), scenario.cloud[0].times
    assert times is not None
    inputs = []
    for choice, report in zip(CHOICES, found, strict=True):
        seen = report.seen
        if seen is not None:
            inputs.append(
                choice_inputs(
                    acceptance=seen.acceptance if choice.window else known,
                    pass_ms=seen.pass_ms,
                    guess_ms=seen.draft_ms,
                    rtt_ms=seen.rtt_ms,
                    token_ms=times.next_token_ms(seen.pass_tokens),
                    batch=seen.batch,
                    queue=seen.queue,
                )
            )
    return inputs, [worth] * len(inputs)


def worth_of(report: SimReport) -> float:
    """(ln soft goodput - ln mean latency) / 2. Latency distinguishes choices that all meet the objective."""
    return (math.log(max(report.soft_goodput, 1e-9)) - math.log(max(report.latency_ms.mean, 1e-3))) / 2


def _acceptance_when_drafting(found: Sequence[SimReport]) -> float:
    """Stand-in for the last acceptance before target-only: the mean over the runs that drafted."""
    rates = [report.seen.acceptance for report in found if report.seen is not None and report.fates.drafted]
    return float(np.mean(rates)) if rates else 1.0


def write_dataset(dataset: Dataset, path: Path) -> None:
    np.savez_compressed(path, inputs=dataset.inputs, targets=dataset.targets, groups=dataset.groups)


def read_dataset(path: Path) -> Dataset:
    """Raises OSError for a missing file."""
    with np.load(path, allow_pickle=False) as arrays:
        return Dataset(arrays["inputs"], arrays["targets"], arrays["groups"])
