"""Labelled telemetry for the paper's network: python -m awc.training dataset.

Every training scenario runs under each window from 2 to 12 and cloud-only, in stop-and-wait (arXiv 2511.21669: an
exhaustive sweep of more than 2,000 scenarios). A row is what a controller sees of a scenario under one window; its
label is the window with the scenario's best score, CLOUD_ONLY where that is target-only serving.

Invariant: rows of one scenario stay together, and a seed makes the same rows again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from awc.features import NUM_INPUTS, inputs_of
from awc.training.runs import STOP_AND_WAIT, Reports, run, static_cell
from awc.training.scenarios import TRAINING, drawn
from dsd_sim.cells import Cell
from dsd_sim.report import Report

CLOUD_ONLY = 1  # the label, and the window as the network sees it: the paper's controller takes 1 and below for it
WINDOWS = (0, *range(2, 13))
NUM_SCENARIOS = 2400


@dataclass(frozen=True, slots=True)
class Dataset:
    inputs: NDArray[np.float64]  # [rows, NUM_INPUTS]
    labels: NDArray[np.float64]  # [rows] windows
    groups: NDArray[np.int64]  # [rows] number of the scenario


def make_dataset(folder: Path, num: int, workers: int | None) -> Dataset:
    """`folder`: for results of runs; what it holds is not run again."""
    cells = [[static_cell(each.scenario, STOP_AND_WAIT, w) for w in WINDOWS] for each in drawn(TRAINING, num)]
    reports = run((cell for row in cells for cell in row), folder, workers)
    parts = [_rows(row, reports) for row in cells]
    groups = np.repeat(np.arange(num), [len(part.labels) for part in parts])
    inputs = np.concatenate([part.inputs for part in parts])
    return Dataset(inputs, np.concatenate([part.labels for part in parts]), groups)


def _rows(cells: Sequence[Cell], reports: Reports) -> Dataset:
    """Of one scenario. While nothing is drafted acceptance is what was seen last, here in all other runs."""
    found = [reports[cell.key] for cell in cells]
    best = WINDOWS[int(np.argmax([report.soft_goodput for report in found]))]
    known = float(np.mean([_acceptance(report) for report in found[1:]]))
    rows = [_row(window, report, known) for window, report in zip(WINDOWS, found, strict=True) if report.seen]
    inputs = np.array(rows).reshape(-1, NUM_INPUTS)
    return Dataset(inputs, np.full(len(rows), float(best or CLOUD_ONLY)), np.zeros(len(rows), np.int64))


def _acceptance(report: Report) -> float:
    return report.seen.acceptance if report.seen else report.acceptance


def _row(window: int, report: Report, known: float) -> list[float]:
    seen = report.seen
    assert seen is not None
    acceptance = seen.acceptance if window else known
    return inputs_of(seen.queue, acceptance, seen.rtt_ms, seen.tpot_ms, window or CLOUD_ONLY)


def write_dataset(dataset: Dataset, path: Path) -> None:
    np.savez_compressed(path, inputs=dataset.inputs, labels=dataset.labels, groups=dataset.groups)


def read_dataset(path: Path) -> Dataset:
    """Raises OSError where there is none."""
    with np.load(path, allow_pickle=False) as arrays:
        return Dataset(arrays["inputs"], arrays["labels"], arrays["groups"])
