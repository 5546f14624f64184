"""What a simulated drafter reports of a pair: the fields of the world's PAIR record as the services' message."""

from __future__ import annotations

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
    )
