"""The spans of a drafter: one for each session whose request is traced (docs/traces.md).

Invariant: all calls are at the beginning and the end of a session. Draft steps are told to the WorkTrace of its slot
(loop.py), which other sessions don't have.
"""

from __future__ import annotations

import time

from services.edge_drafter.sessions import SessionSlot
from shared.runtime import semconv
from shared.runtime.tracing import NO_TRACING, Tracing, Value, WorkTrace


class DrafterTraces:
    def __init__(self, tracing: Tracing = NO_TRACING) -> None:
        self._tracing = tracing

    def begin(self, slot: SessionSlot) -> None:
        """Call it after a Speculate, again if that is repeated or rebinds the session."""
        if slot.trace is None:
            now = time.monotonic()
            span = self._tracing.follow(slot.state.request.traceparent, semconv.DRAFT, now)
            slot.trace = WorkTrace(span, now) if span else None

    def end(self, slot: SessionSlot, error: str) -> None:
        """The session is over here, by an error or not. Its last guess may be older: a verifier can end an answer."""
        if slot.trace is None:
            return
        state, fates = slot.state, slot.state.fates
        attributes: dict[str, Value] = {
            semconv.SESSION_ID: state.session_id,
            semconv.GATEWAY: slot.gateway_id,
            semconv.VERIFIER: slot.verifier_id,
            semconv.TERM: state.term,
            semconv.WINDOW: state.window,
            semconv.DRAFTED: state.drafted,
            semconv.ACCEPTED: fates.accepted,
            semconv.REJECTED: fates.rejected,
            semconv.LATE: fates.late,
            semconv.DISCARDED: fates.discarded,
        }
        if state.round_trip.mean_ms is not None:
            attributes[semconv.RTT_MS] = round(state.round_trip.mean_ms, 3)
        slot.trace.end(time.monotonic(), attributes, error, is_complete=False)
        slot.trace = None
