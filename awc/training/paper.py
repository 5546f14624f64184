"""The paper's twelve cells (arXiv 2511.21669, experiments) under its controller and under ours.

Invariant: both meet the same fleets, requests and guesses; the paper's waits for every window, ours slides. Capacity:
with how many times the clients and drafters of a cell ours still has the time per token that the paper's has in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from awc.policies import POLICIES
from awc.training.runs import SLIDING, STOP_AND_WAIT, cell, run, static_cell
from awc.training.scenarios import FOLDER
from dsd_sim.cells import Cell
from dsd_sim.demand import Closed
from dsd_sim.report import Report
from dsd_sim.scenario import Scenario, read_scenario

PAPER = FOLDER / "paper"
START = 4
FACTORS = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)  # of clients and drafters


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
    capacity: float  # the highest of FACTORS, or 1; 0 where ours is slower in the very cell


def paper_cells(folder: Path, workers: int | None) -> list[PaperCell]:
    """`folder`: for results of runs; what it holds is not run again."""
    paths = sorted(path for path in PAPER.glob("*.toml") if path.name != "compare.toml")
    scenarios = {path.stem: read_scenario(path) for path in paths}
    cells = {name: _ways(scenario) for name, scenario in scenarios.items()}
    crowded = {name: [_ours(_crowded(each, factor)) for factor in FACTORS] for name, each in scenarios.items()}
    wanted = [each for name in cells for each in (*cells[name].values(), *crowded[name])]
    reports = run(wanted, folder, workers)
    return [
        PaperCell(
            name,
            {way: _figures(reports[cell.key]) for way, cell in ways.items()},
            capacity_of(
                reports[ways["wc-dnn"].key], [reports[each.key] for each in (ways["adaptive"], *crowded[name])]
            ),
        )
        for name, ways in cells.items()
    ]


def _crowded(scenario: Scenario, factor: float) -> Scenario:
    """So many times the clients and drafters."""
    workload = scenario.workload
    assert isinstance(workload, Closed)
    clients = round(factor * workload.num_clients)
    edges = [edge.model_copy(update={"count": round(factor * edge.count)}) for edge in scenario.edge]
    return scenario.model_copy(update={"workload": workload.model_copy(update={"num_clients": clients}), "edge": edges})


def capacity_of(theirs: Report, ours: Sequence[Report]) -> float:
    """`ours`: of the cell, and of FACTORS times its clients."""
    found = 0.0
    for factor, report in zip((1.0, *FACTORS), ours, strict=True):
        if report.tpot_ms.mean > theirs.tpot_ms.mean:
            break
        found = factor
    return found


def _ways(scenario: Scenario) -> dict[str, Cell]:
    waiting = STOP_AND_WAIT.choice(START)
    return {
        "cloud only": static_cell(scenario, STOP_AND_WAIT, STOP_AND_WAIT.choice(0), PAPER),
        "static 4": static_cell(scenario, STOP_AND_WAIT, waiting, PAPER),
        "wc-dnn": cell(scenario, STOP_AND_WAIT, POLICIES["wc-dnn"](waiting), waiting, PAPER),
        "adaptive": _ours(scenario),
    }


def _ours(scenario: Scenario) -> Cell:
    start = SLIDING.choice(START)
    return cell(scenario, SLIDING, POLICIES["adaptive"](start), start, PAPER)


def _figures(report: Report) -> Figures:
    return Figures(report.tokens_per_s, report.tpot_ms.mean, report.ttft_ms.mean, report.verifier_utilisation)
