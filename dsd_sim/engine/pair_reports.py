"""Reports of simulated drafters: the world's PAIR record as the services' PairReport, and means over all reports.

Invariant: the means contain only what controllers were shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec import Struct

from shared.protocol.messages import PairReport

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
    """The report of a pair. `context`: tokens, the sum over its sessions."""
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


AVERAGED = ("window", "num_sessions", "context", "rtt_ms", "queue", "tpot_ms", "pass_ms", "batch", "pass_tokens")


@dataclass
class ReportSums:
    """Sums over the reports of a simulation."""

    num: int = 0
    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*AVERAGED, "draft_ms"), 0.0))
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
