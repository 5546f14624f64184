"""What the comparison stores for each cell.

Invariant: a round holds the answers of all systems of its cell to the same prompts, or it is not stored. A system that
fails leaves the cell with all its answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.harness.files import read_result
from benchmarks.harness.origin import Origin
from benchmarks.peers.cells import Cell
from benchmarks.peers.systems import System


@dataclass(frozen=True, slots=True)
class Answers:
    """Of one system in one round. Lists have an entry for each client. texts: digests."""

    seconds: float  # from the requests to the end of the last answer
    ttft_ms: list[float]
    tpot_ms: list[float]
    prompt_tokens: list[int]
    texts: list[str]
    foreign_share: float
    accepted: int = 0  # guesses of DSD, late ones included
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class CellResult:
    """rounds: answers by system. failed: systems that left the cell, and why. voids: why systems were asked again.
    complaints: why the cell is void, if it is."""

    cell: Cell
    systems: list[System]  # in the order of the report
    versions: dict[str, str]
    inputs: str  # digest of code, models, prompts, machine, versions and choices
    origin: Origin
    rounds: list[dict[str, Answers]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    voids: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    is_finished: bool = False  # all its rounds, or all for which it had time

    def without(self, name: str, why: str) -> CellResult:
        """Without a system that failed."""
        systems = [system for system in self.systems if system.name != name]
        rounds = [{key: answers for key, answers in each.items() if key != name} for each in self.rounds]
        return replace(self, systems=systems, rounds=rounds, failed=self.failed | {name: why})

    @property
    def all_names(self) -> set[str]:
        """Of its systems, those that left it too."""
        return {*self.failed, *(system.name for system in self.systems)}

    @property
    def counts(self) -> bool:
        return self.is_finished and not self.complaints


def path_of(cell: Cell, folder: Path) -> Path:
    return folder / f"{cell.name}.json"


def read_cell(cell: Cell, folder: Path) -> CellResult | None:
    """None: not measured yet. Raises ValueError, naming the file, if it holds something else."""
    path = path_of(cell, folder)
    return read_result(path, CellResult) if path.is_file() else None
