"""The paper's twelve cells (arXiv 2511.21669, experiments) under its controller and under ours.

Invariant: both meet the same fleets, requests and guesses; the paper's waits for every window, ours slides.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from awc.training.runs import JUDGED, SLIDING, STOP_AND_WAIT, cell, run, static_cell
from awc.training.scenarios import FOLDER
from dsd_sim.cells import Cell
from dsd_sim.report import Report
from dsd_sim.scenario import Scenario, read_scenario

PAPER = FOLDER / "paper"
START = 4


class Figures(Struct, frozen=True):
    """Of one cell under one way of serving."""

    tokens_per_s: float
    tpot_ms: float
    ttft_ms: float
    utilisation: float  # of the verifiers


class PaperCell(Struct, frozen=True):
    """One cell, by ways of serving."""

    name: str
    ways: dict[str, Figures]


def paper_cells(folder: Path, workers: int | None) -> list[PaperCell]:
    """`folder`: for results of runs; what it holds is not run again."""
    paths = sorted(path for path in PAPER.glob("*.toml") if path.name != "compare.toml")
    cells = {path.stem: _ways(read_scenario(path)) for path in paths}
    reports = run((cell for ways in cells.values() for cell in ways.values()), folder, workers)
    return [
        PaperCell(name, {way: _figures(reports[cell.key]) for way, cell in ways.items()})
        for name, ways in cells.items()
    ]


def _ways(scenario: Scenario) -> dict[str, Cell]:
    waiting, sliding = STOP_AND_WAIT.choice(START), SLIDING.choice(START)
    return {
        "cloud only": static_cell(scenario, STOP_AND_WAIT, STOP_AND_WAIT.choice(0), PAPER),
        "static 4": static_cell(scenario, STOP_AND_WAIT, waiting, PAPER),
        "wc-dnn": cell(scenario, STOP_AND_WAIT, JUDGED["wc-dnn"](waiting), waiting, PAPER),
        "adaptive": cell(scenario, SLIDING, JUDGED["adaptive"](sliding), sliding, PAPER),
    }


def _figures(report: Report) -> Figures:
    return Figures(report.tokens_per_s, report.tpot_ms.mean, report.ttft_ms.mean, report.verifier_utilisation)
