"""A report of a pair, for tests that change what matters to them."""

from __future__ import annotations

from shared.protocol.messages import PairReport

SEEN = PairReport(
    verifier_id="v.000000000001",
    num_sessions=1,
    window=8,
    drafted=8,
    matched=6,
    mismatched=2,
    late=0,
    discarded=0,
    draft_ms=10.0,
    rtt_ms=30.0,
    queue=0.1,
    tpot_ms=25.0,
    context=100,
    pass_ms=40.0,
    batch=2.0,
    pass_tokens=9.0,
)
