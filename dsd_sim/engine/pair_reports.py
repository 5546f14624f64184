"""Reports of simulated drafters: the world's PAIR record as the services' PairReport, and means over all reports.

Invariant: the means contain only what controllers were shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from dsd_sim.engine.records import FATES
from shared.protocol.messages import PairReport

AVERAGED = ("window", "num_sessions", "rtt_ms", "queue", "tpot_ms", "pass_ms", "batch", "pass_tokens")
REPORTED = (*AVERAGED, *FATES, "context")  # fields of a PAIR


def report_of(verifier_id: str, draft_ms: float, values: Iterable[Any]) -> PairReport:
    """The report of a pair with these REPORTED values. Its context is tokens, the sum over its sessions."""
    pair = dict(zip(REPORTED, values, strict=True))
    accepted, rejected, context = (pair.pop(name) for name in ("accepted", "rejected", "context"))
    return PairReport(
        verifier_id=verifier_id,
        draft_ms=draft_ms,
        matched=accepted + pair["late"],
        mismatched=rejected,
        context=context // pair["num_sessions"] if pair["num_sessions"] else 0,
        **pair,
    )


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

    def add(self, report: PairReport) -> None:
        if not report.num_sessions or not report.tpot_ms:
            return
        self.num += 1
        self.matched += report.matched
        self.judged += report.matched + report.mismatched
        for name in self.totals:
            self.totals[name] += getattr(report, name)

    def means(self) -> MeanReport | None:
        """None if there was no report."""
        if self.num == 0:
            return None
        acceptance = self.matched / self.judged if self.judged else 0.0
        return MeanReport(self.num, acceptance, **{name: total / self.num for name, total in self.totals.items()})
