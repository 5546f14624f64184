"""The spans of a verifier: one for each session whose request is traced (docs/traces.md).

Invariant: all calls are at the opening and the end of a session, or when it gets or loses KV cache. Passes are told to
the WorkTrace of its slot (loop.py), which other sessions don't have.
"""

from __future__ import annotations

import time

from services.cloud_verifier.sessions import SessionSlot
from shared.runtime import semconv
from shared.runtime.tracing import NO_TRACING, Tracing, Value, WorkTrace


class VerifierTraces:
    def __init__(self, tracing: Tracing = NO_TRACING) -> None:
        self._tracing = tracing

    def begin(self, slot: SessionSlot) -> None:
        """Call it after an Open, again if that is repeated or rebinds the session."""
        if slot.trace is None:
            now = time.monotonic()
            span = self._tracing.follow(slot.state.request.traceparent, semconv.VERIFY, now)
            slot.trace = WorkTrace(span, now) if span else None

    def tell_room(self, slot: SessionSlot, *, has_room: bool) -> None:
        """The gateway is told whether the session has KV cache."""
        if slot.trace is not None and has_room == slot.told_to_wait:
            slot.trace.span.event(semconv.HAS_KV if has_room else semconv.WAITS_FOR_KV, time.monotonic())

    def end(self, slot: SessionSlot, error: str) -> None:
        """The session is over here. error: why, if not by its gateway; an answer that is whole has none."""
        if slot.trace is None:
            return
        state, tally = slot.state, slot.state.tally
        attributes: dict[str, Value] = {
            semconv.SESSION_ID: state.session_id,
            semconv.GATEWAY: state.gateway_id,
            semconv.DRAFTER: state.drafter_id or "",
            semconv.TERM: state.term,
            semconv.INPUT_TOKENS: len(state.request.prompt_ids),
            semconv.OUTPUT_TOKENS: state.length - len(state.request.prompt_ids) - len(state.request.committed_ids),
            semconv.NUM_PASSES: tally.num_passes,
            semconv.ACCEPTED: tally.accepted,
            semconv.REJECTED: tally.rejected,
            semconv.LATE: tally.late,
            semconv.DISCARDED: tally.discarded,
            semconv.LOOKED_UP: tally.looked_up,
            semconv.RESPONSE_FINISH_REASONS: [state.finish] if state.finish else [],
        }
        is_complete = state.finish is not None
        slot.trace.end(time.monotonic(), attributes, "" if is_complete else error, is_complete=is_complete)
        slot.trace = None
