"""Breaks of the real code, one line each, that histories must find."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from services.cloud_verifier import service as verifier_service
from services.cloud_verifier import sessions as verifier_sessions
from services.edge_drafter import service as drafter_service
from services.gateway.session import (
    drafter_binding,
    load_accounting,
    outbox,
    quarantine,
    session,
    verdict_stream,
)
from shared.protocol import drafter_session, guess_queue, verifier_session


@dataclass(frozen=True)
class Break:
    """In `owner.name` the text `old` becomes `new`."""

    owner: Any
    name: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.owner.__name__}.{self.name}: {self.old} -> {self.new}"

    @contextmanager
    def made(self) -> Iterator[None]:
        """The code is broken meanwhile."""
        whole = vars(self.owner)[self.name]
        function = whole.fget if isinstance(whole, property) else getattr(whole, "__func__", whole)
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(self.old) != 1:
            raise ValueError(f"{self}: the text is there {source.count(self.old)} times")
        made: dict[str, Any] = {}
        exec(source.replace(self.old, self.new), function.__globals__, made)
        setattr(self.owner, self.name, made[self.name])
        try:
            yield
        finally:
            setattr(self.owner, self.name, whole)


V, Q, D = verifier_session.VerifierSession, guess_queue.GuessQueue, drafter_session.DrafterSession
T, VS = verifier_sessions.SessionTable, verifier_service.Verifier
S, M, B = session.Session, verdict_stream.VerdictStream, drafter_binding.DrafterBinding

BREAKS = (
    # the verifier's text
    Break(V, "end_pass", "draws[: matched + 1]", "draws[: matched + 2]"),
    Break(V, "end_pass", "min(accepted, len(draws) - 1, len(committed) - 1)", "accepted"),
    Break(V, "_cut", "stop + 1", "stop + 2"),
    Break(V, "drop_cache", "self.computed = 0", "pass"),
    # guesses
    Break(Q, "receive", "if draft.epoch < self.epoch:", "if False:"),
    Break(Q, "receive", "if draft.base > self.end:", "if draft.base > self.end + 1:"),
    Break(Q, "receive", "self.clear(length)", "pass"),
    Break(Q, "clear", "self.discard(len(self.pending))", "pass"),
    Break(Q, "settle", "is_wrong = equal < min(len(self.pending), len(fixed))", "is_wrong = False"),
    Break(V, "_offer_again", "self.guesses.put_back(rest, row.base + num_drawn)", "pass"),
    Break(V, "expire_drafter", "self._most_waited_ms = lease_ms", "pass"),
    Break(VS, "_on_draft", "if sender != state.drafter_id:", "if False:"),
    # opening and closing
    Break(T, "_check_room", "if stone is not None and request.term <= stone.term:", "if False:"),
    Break(T, "close", "self._release(slot)", "pass"),
    Break(T, "close", "self.admit()", "pass"),
    Break(T, "expire", "now - slot.renewed_at > self._lease_ms", "False"),
    Break(T, "expire", "if stone.until > now", ""),
    Break(T, "renew", "and not slot.state.finish", ""),
    Break(T, "renew", "slot.renewed_at = now", "pass"),
    Break(VS, "_on_heartbeat", "self.table.renew(subjects.sender(subject), now_ms())", "pass"),
    Break(T, "settle", "self._release(slot)", "pass"),
    Break(VS, "_on_draft", "self.loop.wake()", "pass"),
    Break(VS, "_answer", 'self._send("gateway", slot.state.gateway_id, verdict)', "pass"),
    Break(VS, "_hand_over", "await self._bus.publish(subject, refusal.failure(state.session_id, state.term))", "pass"),
    # the drafter
    Break(D, "_roll_back", "self.computed = min(self.computed, length)", "pass"),
    Break(D, "_roll_back", "self._valid = min(self._valid, length)", "pass"),
    Break(D, "on_timer", "self._tries += 1", "pass"),
    Break(D, "on_timer", "if due is None or now < due:", "if True:"),
    Break(D, "on_verdict", "if verdict.base > self.committed:", "if False:"),
    Break(D, "_count", "self.fates.rejected += equal >= self.committed", "pass"),
    Break(D, "rebind", "self.fates.discarded += self.num_guesses", "pass"),
    Break(drafter_service.Drafter, "_on_close", "self._end(slot)", "pass"),
    Break(drafter_service.Drafter, "_advance", "self.loop.wake()", "pass"),
    # the gateway
    Break(M, "_added", "first = self.length - verdict.base", "first = self.length - verdict.base + 1"),
    Break(M, "merge", "if verdict.base > self.length:", "if verdict.base > self.length + 1:"),
    Break(M, "on_timer", "return self.length", "return None"),
    Break(S, "on_timer", "self._leave_verifier(now)", "pass"),
    Break(S, "_on_refusal", 'or failure.code == "closed"', ""),
    Break(S, "_bind", "self.term += 1", "pass"),
    Break(S, "_hear_verifier", "self._unanswered_since, self._num_absents = None, 0", "pass"),
    Break(B, "choose", "return self.placement.drafter(", "return self.drafter_id or self.placement.drafter("),
    Break(S, "close", "self._outbox.close(self.term)", "pass"),
    Break(S, "close", "self._load.count_at(now)", "pass"),
    Break(
        outbox.SessionOutbox,
        "leave",
        "self._waiting.append(Send(self._bound[instance_id], instance_id, close))",
        "pass",
    ),
    Break(outbox.SessionOutbox, "add", "self._bound[instance_id] = service", "pass"),
    Break(quarantine.Quarantine, "avoid", "self._until[instance_id] = until", "self._until[instance_id] = until + 1e9"),
    Break(
        load_accounting.LoadAccounting,
        "count_at",
        "self.fleet.count_sessions(instance_id, -1, None, -kv_tokens)",
        "pass",
    ),
)
