"""Which cells `make bench` measures, and the ways of serving that are compared in each (docs/benchmarks.md).

Invariant: every cell has target-only among its modes, through the same processes: what all ratios are to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from awc.policy import WindowChoice

STOP_AND_WAIT = (1, 2, 4, 6, 8, 12)
RTTS_MS = (0, 10, 30, 60, 100, 200)
SHARED_RTTS_MS = (0, 30, 100)  # of the cells with several sessions
NUM_SHARED = 8
SLIDING = WindowChoice(16, 2, free_run=True)
SERVED = "adaptive"  # the policy of a controller that is told none


@dataclass(frozen=True, slots=True)
class Mode:
    """A way of serving: what a request asks for, and what the controller decides: a choice, or by a policy."""

    name: str
    speculation: Literal["off", "adaptive"] = "adaptive"
    way: WindowChoice | str = SERVED


def stop_and_wait(window: int) -> Mode:
    """The paper's scheme: a whole window, then wait for its verdict."""
    return Mode(f"stop-and-wait {window}", way=WindowChoice(window, window, free_run=False))


TARGET_ONLY = Mode("target-only", "off", SLIDING)
SLIDING_WAITING = Mode("sliding", way=WindowChoice(SLIDING.window, SLIDING.chunk, free_run=False))
SLIDING_FREE = Mode("sliding, free running", way=SLIDING)
ADAPTIVE = Mode("adaptive")
ALL_MODES = (TARGET_ONLY, *map(stop_and_wait, STOP_AND_WAIT), SLIDING_WAITING, SLIDING_FREE, ADAPTIVE)
FEW_MODES = (TARGET_ONLY, stop_and_wait(4), SLIDING_FREE, ADAPTIVE)
POLICY_MODES = (
    TARGET_ONLY,
    *(Mode(f"window {window}", way=WindowChoice(window, 2, free_run=True)) for window in (2, 4, 8)),
    *(Mode(name, way=name) for name in ("ladder", "goodput")),
    ADAPTIVE,
)


def cell_name(draft: str, rtt_ms: int, num_sessions: int, num_drafters: int) -> str:
    """Of a cell, and of the file with what was measured in it."""
    return f"{draft}-rtt{rtt_ms}-{num_sessions}" + (f"-on{num_drafters}" if num_drafters > 1 else "")


@dataclass(frozen=True, slots=True)
class CellSpec:
    """One running system, and what is compared in it."""

    draft: str
    rtt_ms: int
    num_sessions: int
    modes: tuple[Mode, ...]
    weight: float = 1.0  # its share of the time
    num_drafters: int = 1

    @property
    def name(self) -> str:
        return cell_name(self.draft, self.rtt_ms, self.num_sessions, self.num_drafters)

    def __str__(self) -> str:
        drafters = f" on {self.num_drafters} drafters" if self.num_drafters > 1 else ""
        return f"{self.draft} draft, RTT {self.rtt_ms} ms, {self.num_sessions} at once{drafters}"


def full_plan() -> list[CellSpec]:
    """One session at every RTT with all modes, several at some with few; those that matter most first."""
    alone = [CellSpec(draft, rtt_ms, 1, ALL_MODES) for rtt_ms in RTTS_MS for draft in ("int8", "int4")]
    shared = [
        CellSpec(draft, rtt_ms, NUM_SHARED, FEW_MODES, weight=0.6)
        for rtt_ms in SHARED_RTTS_MS
        for draft in ("int8", "int4")
    ]
    return sorted([*alone, *shared], key=lambda spec: spec.rtt_ms != 30)


def policy_plan(num_drafters: int = 1) -> list[CellSpec]:
    """Window policies against each other and against static windows, at some RTTs with one session and several, as far
    as there are as many as drafters."""
    nums = [num for num in (1, 4, 16) if num >= num_drafters]
    return [
        CellSpec("int8", rtt_ms, num, POLICY_MODES, num_drafters=num_drafters)
        for num in nums
        for rtt_ms in SHARED_RTTS_MS
    ]


def quick_plan() -> list[CellSpec]:
    """Two cells, enough to see whether something broke."""
    modes = (TARGET_ONLY, stop_and_wait(4), stop_and_wait(8), SLIDING_FREE, ADAPTIVE)
    return [CellSpec("int8", 30, 1, modes), CellSpec("int8", 30, NUM_SHARED, FEW_MODES)]
