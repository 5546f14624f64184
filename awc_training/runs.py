"""Runs of scenarios under policies, on all cores, kept so that none is computed twice.

Invariant: a run's result depends on its scenario, its policy and the code alone, and is found by a key made of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from awc.policies.static import StaticPolicy
from awc.policy import WindowChoice, WindowPolicy
from awc_training.scenarios import FOLDER
from dsd_sim.scenario.scenario import Policies, Scenario
from dsd_sim.studies.cells import Cell, key_of
from dsd_sim.studies.report import Report
from dsd_sim.studies.runner import num_cores, progress_shown, run_cells

Reports: TypeAlias = dict[str, Report]


@dataclass(frozen=True, slots=True)
class Transport:
    """How guesses travel, and how a verifier forms passes; a policy sets the window."""

    name: str
    chunk: int  # 0: as large as the window
    free_run: bool
    batching: str

    def choice(self, window: int) -> WindowChoice:
        if window == 0:
            return WindowChoice(0, 1, free_run=True)
        return WindowChoice(window, min(self.chunk or window, window), self.free_run)

    def policies(self, given: Policies, start: WindowChoice) -> Policies:
        """Those of a scenario with this transport, and a start."""
        return given.model_copy(
            update={
                "window": start.window,
                "chunk": start.chunk,
                "free_run": start.free_run,
                "batching": self.batching,
            }
        )


# The paper's: a whole window at a time, batches by length (LAB, as its full stack has it). Ours: docs/architecture.md.
STOP_AND_WAIT = Transport("stop-and-wait", chunk=0, free_run=False, batching="lab")
SLIDING = Transport("sliding", chunk=2, free_run=True, batching="worth")
TRANSPORTS = {transport.name: transport for transport in (STOP_AND_WAIT, SLIDING)}


def static_cell(scenario: Scenario, transport: Transport, choice: WindowChoice, folder: Path = FOLDER) -> Cell:
    """A run with one choice from beginning to end."""
    return cell(scenario, transport, StaticPolicy(choice), choice, folder)


def cell(
    scenario: Scenario, transport: Transport, policy: WindowPolicy, start: WindowChoice, folder: Path = FOLDER
) -> Cell:
    """A run that starts with `start` and goes on as the policy says. `folder`: of the scenario's files."""
    ready = scenario.model_copy(update={"policies": transport.policies(scenario.policies, start)})
    path = folder / f"{scenario.name}.toml"
    return Cell(ready, path, f"{policy.name}, {transport.name}", key_of(ready, folder, policy), policy)


def run(cells: Iterable[Cell], folder: Path, workers: int | None) -> Reports:
    """By the keys of cells. Stopped and started again it goes on."""
    with progress_shown() as tell:
        return run_cells(cells, folder, workers or num_cores(), tell)


def scores(cells: Sequence[Cell], reports: Reports) -> list[float]:
    """Of each cell's run."""
    return [reports[cell.key].soft_goodput for cell in cells]
