"""Simulations of scenarios under policies, on all cores, with results kept on disk.

Invariant: a result depends on scenario, policy and code alone; its key is made of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from awc.policies.static import StaticPolicy
from awc.policy import WindowChoice, WindowPolicy
from awc_training.scenarios import FOLDER
from dsd_sim.scenario.scenario import Scenario
from dsd_sim.studies.cells import Cell, key_of
from dsd_sim.studies.cli import compile_now
from dsd_sim.studies.report import SimReport
from dsd_sim.studies.runner import num_cores, run_cells, show_progress

Reports: TypeAlias = dict[str, SimReport]


@dataclass(frozen=True, slots=True)
class Transport:
    """How guesses are sent and how verifiers form passes. A policy sets the window."""

    name: str
    chunk: int  # 0: as large as the window
    free_run: bool
    batching: str

    def choice(self, window: int) -> WindowChoice:
        if window == 0:
            return WindowChoice(0, 1, free_run=True)
        return WindowChoice(window, min(self.chunk or window, window), self.free_run)


# The paper's (arXiv 2511.21669): whole windows, length-aware batching. Ours: docs/architecture.md.
STOP_AND_WAIT = Transport("stop-and-wait", chunk=0, free_run=False, batching="lab")
SLIDING = Transport("sliding", chunk=2, free_run=True, batching="worth")
TRANSPORTS = {transport.name: transport for transport in (STOP_AND_WAIT, SLIDING)}


def static_cell(scenario: Scenario, transport: Transport, choice: WindowChoice, folder: Path = FOLDER) -> Cell:
    """A run with one choice throughout."""
    return cell(scenario, transport, StaticPolicy(choice), choice, folder)


def cell(
    scenario: Scenario, transport: Transport, policy: WindowPolicy, start: WindowChoice, folder: Path = FOLDER
) -> Cell:
    """A run of a policy from `start`. `folder`: of the scenario's files."""
    update = {"window": start.window, "chunk": start.chunk, "free_run": start.free_run, "batching": transport.batching}
    ready = scenario.model_copy(update={"policies": scenario.policies.model_copy(update=update)})
    path = folder / f"{scenario.name}.toml"
    return Cell(ready, path, f"{policy.name}, {transport.name}", key_of(ready, folder, policy), policy)


def run(cells: Iterable[Cell], folder: Path, workers: int | None) -> Reports:
    """Reports by the keys of their cells. Resumes after a stop."""
    compile_now()
    with show_progress() as on_progress:
        return run_cells(cells, folder, workers or num_cores(), on_progress)


def scores(cells: Sequence[Cell], reports: Reports) -> list[float]:
    """Soft goodput of each cell's run."""
    return [reports[cell.key].soft_goodput for cell in cells]
