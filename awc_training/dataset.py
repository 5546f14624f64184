"""Labelled telemetry for both networks: python -m awc_training dataset.

Invariant: rows of one scenario stay together, and the same number of scenarios makes the same rows again. Inputs are
what a controller sees of a scenario under one choice; targets are what all choices brought.
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
from dsd_sim.studies.report import Report
from shared.policies.batching import HINGES

CLOUD_ONLY = 1  # the window as the network sees it
# Its label. A prediction up to 1 means cloud-only: 1 is to lie halfway between the label and the usual windows.
CLOUD_ONLY_LABEL = -2
WINDOWS = (0, *range(2, 13))
LEAST_WORTH = -0.7  # of a choice against the best; how bad the worse ones are need not be learned
NUM_SCENARIOS = 2200

Rows: TypeAlias = tuple[list[list[float]], list[list[float]]]  # inputs, targets


@dataclass(frozen=True, slots=True)
class Dataset:
    inputs: NDArray[np.float64]  # [rows, inputs]
    targets: NDArray[np.float64]  # [rows, outputs]
    groups: NDArray[np.int64]  # [rows] number of the scenario


def make_datasets(folder: Path, num: int, workers: int | None) -> tuple[Dataset, Dataset]:
    """That of the paper's network, and ours. `folder`: for results of runs; what it holds is not run again."""
    scenarios = [each.scenario for each in drawn(TRAINING, num)]
    waiting = [[static_cell(each, STOP_AND_WAIT, STOP_AND_WAIT.choice(w)) for w in WINDOWS] for each in scenarios]
    sliding = [[static_cell(each, SLIDING, choice) for choice in CHOICES] for each in scenarios]
    reports = run((cell for row in (*waiting, *sliding) for cell in row), folder, workers)
    return _gathered(waiting, reports, window_rows), _gathered(sliding, reports, choice_rows)


def _gathered(
    cells: Iterable[Sequence[Cell]], reports: Reports, rows_of: Callable[[Scenario, Sequence[Report]], Rows]
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


def window_rows(scenario: Scenario, found: Sequence[Report]) -> Rows:
    """The paper's (arXiv 2511.21669): a row for each of WINDOWS, its target the window with the best score."""
    best = WINDOWS[int(np.argmax([report.soft_goodput for report in found]))]
    known = _acceptance_when_drafting(found)
    inputs = []
    for window, report in zip(WINDOWS, found, strict=True):
        seen = report.seen
        if seen is not None:
            acceptance = seen.acceptance if window else known
            inputs.append(window_inputs(seen.queue, acceptance, seen.rtt_ms, seen.tpot_ms, window or CLOUD_ONLY))
    return inputs, [[float(best or CLOUD_ONLY_LABEL)]] * len(inputs)


def choice_rows(scenario: Scenario, found: Sequence[Report]) -> Rows:
    """A row for each of CHOICES, its target the worth of all of them, less that of the best one."""
    worths = np.array([worth_of(report) for report in found])
    worth = np.maximum(worths - worths.max(), LEAST_WORTH).tolist()
    known, times = _acceptance_when_drafting(found), scenario.cloud[0].times
    assert times is not None
    inputs = []
    for choice, report in zip(CHOICES, found, strict=True):
        seen = report.seen
        if seen is not None:
            above = sum(ms for ms, hinge in zip(times.above_ms, HINGES, strict=True) if seen.pass_tokens > hinge)
            inputs.append(
                choice_inputs(
                    acceptance=seen.acceptance if choice.window else known,
                    pass_ms=seen.pass_ms,
                    guess_ms=seen.draft_ms * max(seen.num_sessions, 1.0),
                    rtt_ms=seen.rtt_ms,
                    token_ms=times.token_ms + above,
                    batch=seen.batch,
                    queue=seen.queue,
                )
            )
    return inputs, [worth] * len(inputs)


def worth_of(report: Report) -> float:
    """The mean of the logarithms of soft goodput and of the speed of answers, 1 / latency. An objective that is met by
    many choices says nothing of which one to take, and no controller knows it; the faster one serves users more."""
    return (math.log(max(report.soft_goodput, 1e-9)) - math.log(max(report.latency_ms.mean, 1e-3))) / 2


def _acceptance_when_drafting(found: Sequence[Report]) -> float:
    """What a controller saw last, before nothing was drafted any more: here, the mean of all other runs."""
    rates = [report.seen.acceptance for report in found if report.seen is not None and report.fates.drafted]
    return float(np.mean(rates)) if rates else 1.0


def write_dataset(dataset: Dataset, path: Path) -> None:
    np.savez_compressed(path, inputs=dataset.inputs, targets=dataset.targets, groups=dataset.groups)


def read_dataset(path: Path) -> Dataset:
    """Raises OSError where there is none."""
    with np.load(path, allow_pickle=False) as arrays:
        return Dataset(arrays["inputs"], arrays["targets"], arrays["groups"])
