"""Reports of simulated drafters: the world's PAIR record as the services' PairReport, and means over all reports.

Invariant: the means contain only what controllers were shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from msgspec import Struct
from numba import njit
from numpy.typing import NDArray

from dsd_sim.engine.world import PAIR, World
from dsd_sim.steering.records import SEEN
from shared.policies import stepping
from shared.protocol.messages import PairReport

AVERAGED = ("window", "num_sessions", "rtt_ms", "queue", "tpot_ms", "pass_ms", "batch", "pass_tokens")
FIELDS = set(PAIR.names or ())  # that a report may take over as they are

guess_ms = njit(cache=True)(stepping.guess_ms)


@dataclass(frozen=True, slots=True)
class SeenPairs:
    """PAIR records that are reported at the same time."""

    pairs: NDArray[Any]
    draft_ms: NDArray[np.float64]  # between two guesses of a session of each, without context, if the pair drafts

    @classmethod
    def of(cls, world: World, devices: NDArray[np.intp], nodes: NDArray[np.intp]) -> SeenPairs:
        pairs, found = world.pairs[devices, nodes], world.devices[devices]
        alone, further = (found[name] * found["slowdown"] for name in ("step_ms", "session_ms"))
        return cls(pairs, _guesses_ms(pairs["num_sharing"], found["max_rows"], alone, further))

    @property
    def matched(self) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self.pairs["accepted"] + self.pairs["late"]
        return found

    @property
    def context(self) -> NDArray[np.int64]:
        """Tokens, mean over sessions."""
        num = self.pairs["num_sessions"]
        found: NDArray[np.int64] = np.where(num > 0, self.pairs["context"] // np.maximum(num, 1), 0)
        return found

    def reports(self, verifier_ids: list[str], shares_machine: bool) -> list[PairReport]:
        """The report of each pair."""
        taken = [name for name in PairReport.__struct_fields__ if name in FIELDS]
        columns: dict[str, list[Any]] = {name: self.pairs[name].tolist() for name in taken}
        columns |= {"verifier_id": verifier_ids, "draft_ms": self.draft_ms.tolist(), "context": self.context.tolist()}
        columns |= {"shares_machine": [shares_machine] * len(verifier_ids)}
        columns |= {"matched": self.matched.tolist(), "mismatched": self.pairs["rejected"].tolist()}
        return list(map(PairReport, *(columns[name] for name in PairReport.__struct_fields__)))

    def records(self, shares_machine: bool) -> NDArray[Any]:
        """The report of each pair, for a compiled policy."""
        found = np.empty(len(self.pairs), SEEN)
        for name in FIELDS & set(SEEN.names or ()):
            found[name] = self.pairs[name]
        found["draft_ms"], found["context"], found["shares_machine"] = self.draft_ms, self.context, shares_machine
        found["matched"], found["mismatched"] = self.matched, self.pairs["rejected"]
        return found


@njit(cache=True)
def _guesses_ms(
    nums: NDArray[np.int32], max_rows: NDArray[np.int32], alone_ms: NDArray[np.float64], further_ms: NDArray[np.float64]
) -> NDArray[np.float64]:
    found = np.empty(len(nums))
    for i in range(len(nums)):
        found[i] = guess_ms(nums[i], max_rows[i], alone_ms[i], further_ms[i])
    return found


class MeanReport(Struct, frozen=True):
    """Means over the reports of pairs with sessions whose answer had begun. Times are milliseconds."""

    num_reports: int
    acceptance: float  # matched / (matched + mismatched); 0 if both are 0
    window: float
    num_sessions: float
    context: float  # tokens per session
    rtt_ms: float
    queue: float
    tpot_ms: float
    pass_ms: float
    batch: float
    pass_tokens: float
    draft_ms: float


@dataclass
class ReportSums:
    """Sums over the reports of a simulation."""

    num: int = 0
    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*AVERAGED, "context", "draft_ms"), 0.0))
    matched: int = 0
    judged: int = 0

    def add(self, seen: SeenPairs) -> None:
        counts = (seen.pairs["num_sessions"] > 0) & (seen.pairs["tpot_ms"] > 0)
        matched = int(seen.matched[counts].sum())
        self.num += int(counts.sum())
        self.matched += matched
        self.judged += matched + int(seen.pairs["rejected"][counts].sum())
        for name in AVERAGED:
            self.totals[name] += float(seen.pairs[name][counts].sum())
        self.totals["context"] += float(seen.context[counts].sum())
        self.totals["draft_ms"] += float(seen.draft_ms[counts].sum())

    def means(self) -> MeanReport | None:
        """None if there was no report."""
        if self.num == 0:
            return None
        acceptance = self.matched / self.judged if self.judged else 0.0
        return MeanReport(self.num, acceptance, **{name: total / self.num for name, total in self.totals.items()})
