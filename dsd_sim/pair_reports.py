"""What a simulated drafter reports of a pair: the fields of the world's PAIR record as the services' message.

Invariant: what is summed up of all reports is what a controller was shown, no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from shared.messages import PairReport

REPORTED = (
    "num_sessions",
    "window",
    "drafted",
    "accepted",
    "rejected",
    "late",
    "discarded",
    "rtt_ms",
    "queue",
    "tpot_ms",
    "context",
    "pass_ms",
    "batch",
    "pass_tokens",
)


def report_of(
    verifier_id: str,
    draft_ms: float,
    num_sessions: int,
    window: int,
    drafted: int,
    accepted: int,
    rejected: int,
    late: int,
    discarded: int,
    rtt_ms: float,
    queue: float,
    tpot_ms: float,
    context: int,
    pass_ms: float,
    batch: float,
    pass_tokens: float,
) -> PairReport:
    """What the drafter would report of a pair now; `context`: the sum over its sessions."""
    return PairReport(
        verifier_id=verifier_id,
        num_sessions=num_sessions,
        window=window,
        drafted=drafted,
        matched=accepted + late,
        mismatched=rejected,
        late=late,
        discarded=discarded,
        draft_ms=draft_ms,
        rtt_ms=rtt_ms,
        queue=queue,
        tpot_ms=tpot_ms,
        context=context // num_sessions if num_sessions else 0,
        pass_ms=pass_ms,
        batch=batch,
        pass_tokens=pass_tokens,
    )


class Seen(Struct, frozen=True):
    """Means over the reports of pairs whose sessions were being answered; times are milliseconds."""

    num_reports: int
    acceptance: float  # right guesses of all that were judged; 0 where none was
    window: float
    num_sessions: float
    rtt_ms: float
    queue: float
    tpot_ms: float
    pass_ms: float
    batch: float
    pass_tokens: float


AVERAGED = ("window", "num_sessions", "rtt_ms", "queue", "tpot_ms", "pass_ms", "batch", "pass_tokens")
COUNTED = ("accepted", "late", "rejected")


@dataclass
class Sums:
    """Of the reports of a simulation."""

    num: int = 0
    averaged: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(AVERAGED)))
    counted: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(COUNTED)))

    def add(self, reported: NDArray[Any]) -> None:
        """PAIR records [reports]."""
        shown = reported[(reported["num_sessions"] > 0) & (reported["tpot_ms"] > 0)]
        self.num += len(shown)
        self.averaged += [shown[name].sum() for name in AVERAGED]
        self.counted += [shown[name].sum() for name in COUNTED]

    def means(self) -> Seen | None:
        """None without a report."""
        if self.num == 0:
            return None
        accepted, late, rejected = self.counted.tolist()
        judged = accepted + late + rejected
        return Seen(self.num, (accepted + late) / judged if judged else 0.0, *(self.averaged / self.num).tolist())
