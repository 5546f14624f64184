"""What a cell gave, as its file holds it.

Invariant: sums over time, such as `cpu_s`, are those of the slice. Times of the models are stretched, those of the
services are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.files import read_result
from benchmarks.harness.latency import Distribution
from benchmarks.harness.origin import Origin
from benchmarks.scale.cells import Cell

GATEWAY, VERIFIER, DRAFTER, CONTROLLER, NATS, CLIENT = "gateway", "verifier", "drafter", "controller", "nats", "client"
SERVICES = (GATEWAY, VERIFIER, DRAFTER, CONTROLLER, NATS)  # each the sum of its processes
MAX_BUSY_SHARE = 0.85  # of all cores; and of one core by a process, whose event loop has no more


@dataclass(frozen=True, slots=True)
class BusCounts:
    """Messages and their bytes at the NATS server: published by services, and delivered to them."""

    published: int
    delivered: int
    published_bytes: int
    delivered_bytes: int


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of time. cpu_s: of each service without its models, and of the client. model_cpu_s: what the stand-ins
    for models took in verifiers and drafters. Shares: of all cores, and of one core."""

    seconds: float
    num_tokens: float
    num_requests: int
    cpu_s: dict[str, float]
    model_cpu_s: float
    bus: BusCounts
    busy_share: float  # of all cores, by all processes of the cell
    foreign_share: float  # of one core, by anything else
    busiest_share: float  # of one core, by the process that used most, models included

    @property
    def complaint(self) -> str | None:
        """Why the cell is void, if it is."""
        if self.busy_share > MAX_BUSY_SHARE:
            return f"the cell used {self.busy_share:.0%} of the cores; at most {MAX_BUSY_SHARE:.0%} may be"
        if self.busiest_share > MAX_BUSY_SHARE:
            return f"a process used {self.busiest_share:.0%} of a core; at most {MAX_BUSY_SHARE:.0%} may be"
        return None


@dataclass(frozen=True, slots=True)
class PassGap:
    """Milliseconds between two passes of a verifier: of any, and for each of its sessions."""

    pass_ms: float
    session_ms: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """DSD-Sim's, means over answers."""

    tokens_per_s: float
    tpot_ms: float
    ttft_ms: float


@dataclass(frozen=True, slots=True)
class CellResult:
    """slower: the factor of the models' times. Memory in MiB of each service, without sessions and with all."""

    cell: Cell
    inputs: str  # digest of code, models and timing
    slower: float
    idle: Slice
    slices: list[Slice]
    idle_mib: dict[str, float]
    loaded_mib: dict[str, float]
    ttft_ms: Distribution
    tpot_ms: Distribution
    prompt_tokens: list[int]
    acceptance: float | None
    gap: PassGap
    num_overruns: int
    complaints: list[str]  # why the cell is void; empty: it counts
    origin: Origin
    predicted: Prediction | None = None

    @property
    def counts(self) -> bool:
        return not self.complaints

    @property
    def loaded(self) -> Slice:
        """All slices as one."""
        return joined(self.slices)

    @property
    def tokens_per_s(self) -> float:
        return self.loaded.num_tokens / self.loaded.seconds


def joined(slices: Sequence[Slice]) -> Slice:
    """One slice of consecutive ones."""
    seconds = sum(each.seconds for each in slices)
    buses = [each.bus for each in slices]
    return Slice(
        seconds,
        sum(each.num_tokens for each in slices),
        sum(each.num_requests for each in slices),
        {name: sum(each.cpu_s[name] for each in slices) for name in slices[0].cpu_s},
        sum(each.model_cpu_s for each in slices),
        BusCounts(*(sum(getattr(each, name) for each in buses) for name in BusCounts.__slots__)),
        sum(each.busy_share * each.seconds for each in slices) / seconds,
        sum(each.foreign_share * each.seconds for each in slices) / seconds,
        max(each.busiest_share for each in slices),
    )


def path_of(cell: Cell, folder: Path) -> Path:
    return folder / f"{cell.name}.json"


def read_cell(cell: Cell, folder: Path) -> CellResult | None:
    """None: not measured yet. Raises ValueError, naming the file, if it holds something else."""
    path = path_of(cell, folder)
    return read_result(path, CellResult) if path.is_file() else None
