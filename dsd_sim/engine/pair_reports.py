"""What a simulated drafter reports of a pair: the fields of the world's PAIR record as the services' message.

Invariant: what is summed up of all reports is what a controller was shown, no more.
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
    context: float  # tokens, of a session
    rtt_ms: float
    queue: float
    tpot_ms: float
    pass_ms: float
    batch: float
    pass_tokens: float
    draft_ms: float


AVERAGED = ("window", "num_sessions", "context", "rtt_ms", "queue", "tpot_ms", "pass_ms", "batch", "pass_tokens")


@dataclass
class Sums:
    """Of the reports of a simulation."""

    num: int = 0
    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*AVERAGED, "draft_ms"), 0.0))
    matched: int = 0
    judged: int = 0

    def add(self, seen: PairReport) -> None:
        if not seen.num_sessions or not seen.tpot_ms:
            return
        self.num += 1
        self.matched += seen.matched
        self.judged += seen.matched + seen.mismatched
        for name in self.totals:
            self.totals[name] += getattr(seen, name)

    def means(self) -> Seen | None:
        """None without a report."""
        if self.num == 0:
            return None
        acceptance = self.matched / self.judged if self.judged else 0.0
        return Seen(self.num, acceptance, **{name: total / self.num for name, total in self.totals.items()})
