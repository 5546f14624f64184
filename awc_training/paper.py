"""The twelve cells of the paper (arXiv 2511.21669, experiments) under its controller and under ours.

The paper's controller runs stop-and-wait, ours a sliding window. Capacity of a cell: the largest of FACTORS by which
its clients and drafters can grow while our TPOT stays at most the paper's in the original cell.

Invariant: both get the same fleets, requests and guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from awc.registry import POLICIES
from awc_training.runs import SLIDING, STOP_AND_WAIT, cell, run, static_cell
from awc_training.scenarios import FOLDER
from dsd_sim.scenario.demand import Closed
from dsd_sim.scenario.scenario import Scenario, read_scenario
from dsd_sim.studies.cells import Cell
from dsd_sim.studies.report import SimReport

PAPER = FOLDER / "paper"
START = 4
FACTORS = (4.0, 3.0, 2.5, 2.0, 1.75, 1.5, 1.25, 1.0)  # of clients and drafters, largest first


class CellFigures(Struct, frozen=True):
    """Results of one cell under one way of serving."""

    tokens_per_s: float
    tpot_ms: float
    ttft_ms: float
    utilisation: float  # of the verifiers


class PaperCell(Struct, frozen=True):
    """Results of one cell."""

    name: str
    ways: dict[str, CellFigures]  # by way of serving
    capacity: float  # one of FACTORS; 0 if ours is slower at factor 1


def paper_cells(folder: Path, workers: int | None) -> list[PaperCell]:
    """`folder`: of the results of runs, which are reused."""
    paths = sorted(path for path in PAPER.glob("*.toml") if path.name != "compare.toml")
    scenarios = {path.stem: read_scenario(path) for path in paths}
    cells = {name: _ways(scenario) for name, scenario in scenarios.items()}
    reports = run((each for ways in cells.values() for each in ways.values()), folder, workers)
    ways = {name: {way: _figures(reports[each.key]) for way, each in cells[name].items()} for name in cells}

    def holding(factor: float, names: Sequence[str]) -> Iterable[str]:
        scaled = {name: _ours(_scaled(scenarios[name], factor)) for name in names}
        reports = run(scaled.values(), folder, workers)
        return [name for name in names if reports[scaled[name].key].tpot_ms.mean <= ways[name]["wc-dnn"].tpot_ms]

    found = capacities(list(scenarios), holding)
    return [PaperCell(name, ways[name], found[name]) for name in scenarios]


def capacities(names: Sequence[str], holding: Callable[[float, Sequence[str]], Iterable[str]]) -> dict[str, float]:
    """The capacity of each cell; 0 for none. `holding(factor, names)`: the cells that hold a factor. Cells that hold a
    factor are not run with smaller ones."""
    found: dict[str, float] = {}
    for factor in FACTORS:
        left = [name for name in names if name not in found]
        if left:
            found |= dict.fromkeys(holding(factor, left), factor)
    return {name: found.get(name, 0.0) for name in names}


def _scaled(scenario: Scenario, factor: float) -> Scenario:
    """`factor` times the clients and drafters."""
    workload = scenario.workload
    assert isinstance(workload, Closed)
    clients = round(factor * workload.num_clients)
    edges = [edge.model_copy(update={"count": round(factor * edge.count)}) for edge in scenario.edge]
    return scenario.model_copy(update={"workload": workload.model_copy(update={"num_clients": clients}), "edge": edges})


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


def _figures(report: SimReport) -> CellFigures:
    return CellFigures(report.tokens_per_s, report.tpot_ms.mean, report.ttft_ms.mean, report.verifier_utilisation)
