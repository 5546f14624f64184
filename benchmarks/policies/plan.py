"""The cells of `make bench`, and the serving modes that each compares (docs/benchmarks.md).

Invariant: every cell has the mode target-only, in the same processes. It is the base of all ratios.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from awc.policies.static import StaticPolicy
from awc.policy import WindowChoice, WindowPolicy
from awc_training.rivals import PAPER, contestants
from benchmarks.harness.scripted_controller import stop_and_wait

STOP_AND_WAIT = (1, 2, 4, 6, 8, 12)  # windows
RTTS_MS = (0, 10, 30, 60, 100, 200)
SHARED_RTTS_MS = (0, 30, 100)  # of cells with several sessions
NUM_SHARED = 8  # sessions on one drafter
SLIDING = WindowChoice(16, 2, free_run=True)
DEFAULT_POLICY = "adaptive"  # the controller's default


@dataclass(frozen=True, slots=True)
class ServingMode:
    """What requests ask for, and what the controller decides: a fixed choice, or by the policy of this name."""

    name: str
    speculation: Literal["off", "adaptive"] = "adaptive"
    control: WindowChoice | str = DEFAULT_POLICY


def stop_and_wait_mode(window: int) -> ServingMode:
    return ServingMode(f"stop-and-wait {window}", control=stop_and_wait(window))


TARGET_ONLY = ServingMode("target-only", "off", SLIDING)
SLIDING_WAITING = ServingMode("sliding", control=WindowChoice(SLIDING.window, SLIDING.chunk, free_run=False))
SLIDING_FREE = ServingMode("sliding, free running", control=SLIDING)
ADAPTIVE = ServingMode("adaptive")
ALL_MODES = (TARGET_ONLY, *map(stop_and_wait_mode, STOP_AND_WAIT), SLIDING_WAITING, SLIDING_FREE, ADAPTIVE)
FEW_MODES = (TARGET_ONLY, stop_and_wait_mode(4), SLIDING_FREE, ADAPTIVE)
# adaptive and its rivals in the variants that were tuned, by the names that reports give them
LIVE_POLICIES: dict[str, Callable[[], WindowPolicy]] = {
    each.label: each.policy for each in contestants() if each.name != StaticPolicy.name and each not in PAPER
}
POLICY_MODES = (
    TARGET_ONLY,
    *(ServingMode(f"window {window}", control=WindowChoice(window, 2, free_run=True)) for window in (2, 4, 8, 16, 32)),
    *(ServingMode(name, control=name) for name in LIVE_POLICIES if name != DEFAULT_POLICY),
    ADAPTIVE,
)


def cell_name(draft: str, rtt_ms: int, num_sessions: int, num_drafters: int) -> str:
    """Name of a cell and of its result file."""
    return f"{draft}-rtt{rtt_ms}-{num_sessions}" + (f"-on{num_drafters}" if num_drafters > 1 else "")


@dataclass(frozen=True, slots=True)
class CellSpec:
    """One running system, and the modes compared in it."""

    draft: str
    rtt_ms: int
    num_sessions: int
    modes: tuple[ServingMode, ...]
    weight: float = 1.0  # relative share of the time budget
    num_drafters: int = 1
    is_race: bool = False  # slow modes leave; adaptive and the fastest other one end it (rounds.py)

    @property
    def name(self) -> str:
        return cell_name(self.draft, self.rtt_ms, self.num_sessions, self.num_drafters)

    def __str__(self) -> str:
        drafters = f" on {self.num_drafters} drafters" if self.num_drafters > 1 else ""
        return f"{self.draft} draft, RTT {self.rtt_ms} ms, {self.num_sessions} at once{drafters}"


def full_plan() -> list[CellSpec]:
    """All modes with one session at every RTT, and few modes with several sessions. RTT 30 ms comes first."""
    alone = [CellSpec(draft, rtt_ms, 1, ALL_MODES) for rtt_ms in RTTS_MS for draft in ("int8", "int4")]
    shared = [
        CellSpec(draft, rtt_ms, NUM_SHARED, FEW_MODES, weight=0.6)
        for rtt_ms in SHARED_RTTS_MS
        for draft in ("int8", "int4")
    ]
    return sorted([*alone, *shared], key=lambda spec: spec.rtt_ms != 30)


def policy_plan(num_drafters: int = 1) -> list[CellSpec]:
    """Window policies against static windows, with one session and with several, at least one per drafter. Rounds of
    many sessions take longer."""
    return [
        CellSpec("int8", rtt_ms, num, POLICY_MODES, weight, num_drafters, is_race=True)
        for num, weight in ((1, 0.6), (4, 1.0), (16, 1.6))
        for rtt_ms in SHARED_RTTS_MS
        if num >= num_drafters
    ]


def small_plan(draft: str) -> list[CellSpec]:
    """A small draft, whose guesses are often wrong: running free against waiting for guesses."""
    waiting = (*map(stop_and_wait_mode, (2, 4, 6)), SLIDING_WAITING)
    modes = (TARGET_ONLY, *waiting, SLIDING_FREE, ADAPTIVE)
    return [CellSpec(draft, rtt_ms, num, modes) for num in (1, NUM_SHARED) for rtt_ms in (0, 30)]


def quick_plan() -> list[CellSpec]:
    """Two cells that show whether something broke."""
    modes = (TARGET_ONLY, stop_and_wait_mode(4), stop_and_wait_mode(8), SLIDING_FREE, ADAPTIVE)
    return [CellSpec("int8", 30, 1, modes), CellSpec("int8", 30, NUM_SHARED, FEW_MODES)]
