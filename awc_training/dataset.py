"""Labelled telemetry for the network of wc-dnn: python -m awc_training dataset.

Inputs of a row: the mean reports of a scenario under one choice. Targets: the results under all choices.

Invariant: rows of a scenario are adjacent, and the same number of scenarios gives the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from awc.estimators.features import window_inputs
from awc_training.runs import STOP_AND_WAIT, run, static_cell
from awc_training.scenarios import TRAINING, drawn
from dsd_sim.studies.report import SimReport

CLOUD_ONLY = 1  # input for window 0
CLOUD_ONLY_LABEL = -2  # target for window 0; the decision threshold 1 lies halfway to the usual windows
WINDOWS = (0, *range(2, 13))
NUM_SCENARIOS = 2200

Rows: TypeAlias = tuple[list[list[float]], list[list[float]]]  # inputs, targets


@dataclass(frozen=True, slots=True)
class Dataset:
    inputs: NDArray[np.float64]  # [rows, inputs]
    targets: NDArray[np.float64]  # [rows, outputs]
    groups: NDArray[np.int64]  # [rows] index of the scenario


def make_dataset(folder: Path, num: int, workers: int | None) -> Dataset:
    """`folder`: of the results of runs, which are reused."""
    scenarios = drawn(TRAINING, num)
    cells = [[static_cell(each, STOP_AND_WAIT, STOP_AND_WAIT.choice(w)) for w in WINDOWS] for each in scenarios]
    reports = run((cell for row in cells for cell in row), folder, workers)
    inputs: list[list[float]] = []
    targets: list[list[float]] = []
    groups: list[int] = []
    for number, row in enumerate(cells):
        found = window_rows([reports[cell.key] for cell in row])
        inputs += found[0]
        targets += found[1]
        groups += [number] * len(found[0])
    return Dataset(np.array(inputs), np.array(targets), np.array(groups))


def window_rows(found: Sequence[SimReport]) -> Rows:
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
