"""The verifier's sessions: admission by free KV cache, preemption, leases, tombstones.

Invariant: sessions get contexts in the order of their opening. A context that has to grow takes the place of the
youngest, so no session loses its context to a younger one, and the oldest always goes on. A session is dropped only if
the engine raises an error, OutOfMemory for example. Times are milliseconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import structlog

from services.cloud_verifier.engine import Context, Engine, OutOfMemory
from shared.policies.kv_cache import likely_kv_tokens
from shared.protocol.messages import Open, Tally
from shared.protocol.refusal import Refused, check_text
from shared.protocol.verifier_session import VerifierSession
from shared.runtime.tracing import WorkTrace

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class SessionSlot:
    """A session and its context, which is None while it waits for free KV cache and after it finished."""

    state: VerifierSession
    renewed_at: float
    context: Context | None = None
    counted: Tally = field(default_factory=Tally)  # the part of the session's tally that metrics include
    told_to_wait: bool = False  # its gateway knows that it waits
    trace: WorkTrace | None = None  # no null object, whose calls would be on the token path

    @property
    def waits(self) -> bool:
        """Whether the session waits for free KV cache."""
        return self.context is None and self.state.finish is None

    @property
    def has_outgrown(self) -> bool:
        """Whether the next pass can reach beyond the context."""
        return self.context is not None and self.state.ready and self.state.reach > self.context.capacity


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A session closed in `term`. Only a higher term may open it again before `until`."""

    term: int
    until: float


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How full a verifier is. capacity: sessions of the present size that it can compute at once; 0 while it drains.
    kv_usage: reserved KV cache / all KV cache."""

    num_running: int
    num_waiting: int  # for KV cache
    capacity: float
    kv_usage: float

    @property
    def utilization(self) -> float:
        """1 or more: a further session has to wait, or is refused."""
        return (self.num_running + self.num_waiting) / self.capacity if self.capacity else 1.0


class SessionTable:
    """All sessions of one verifier, oldest first."""

    def __init__(
        self,
        engine: Engine[Any],
        max_sessions: int,
        lease_ms: float,
        refuse: Callable[[SessionSlot, Refused], None],
        tell: Callable[[SessionSlot], None] = lambda slot: None,
    ) -> None:
        """Both callbacks must not change the table. refuse: called for every slot dropped because the engine can't make
        its context. tell: for every slot that loses its context to another one, or was told to wait and now has one."""
        self._engine = engine
        self._refuse = refuse
        self._tell = tell
        self._max_sessions = max_sessions
        self._lease_ms = lease_ms
        self._slots: dict[str, SessionSlot] = {}
        self._tombstones: dict[str, Tombstone] = {}
        self.num_preemptions = 0  # contexts that sessions lost to older ones
        self.draining = False

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[SessionSlot]:
        return iter(self._slots.values())

    @property
    def num_active(self) -> int:
        """Sessions that have not finished."""
        return sum(slot.state.finish is None for slot in self)

    @property
    def max_context(self) -> int:
        """Longest accepted text in tokens: prompt and answer."""
        return min(self._engine.info.max_context, self._engine.info.largest_context)

    @property
    def free_kv_tokens(self) -> int:
        """KV cache that a new session gets at once, in tokens: none while others wait for theirs."""
        return 0 if any(slot.waits for slot in self) else self._engine.free_kv_tokens

    @property
    def occupancy(self) -> Occupancy:
        """While sessions wait, the others are all that fit. Else as many fit as places or KV cache allow, if further
        sessions reserve as much as those that run."""
        num_waiting = sum(slot.waits for slot in self)
        num_running = self.num_active - num_waiting
        kv_usage = 1 - self._engine.free_kv_tokens / self._engine.info.kv_tokens
        capacity = float(num_running if num_waiting else self._max_sessions)
        if num_running and kv_usage > 0:
            capacity = min(capacity, num_running / kv_usage)
        return Occupancy(num_running, num_waiting, 0.0 if self.draining else max(1.0, capacity), kv_usage)

    def open(self, request: Open, gateway_id: str, now: float) -> SessionSlot:
        """Opens, re-opens (same term, no change) or rebinds (higher term) a session. Raises Refused.

        If its context can't be created, the returned slot is no longer in the table and `refuse` was called.
        """
        self._check(request)
        slot = self._slots.get(request.session_id)
        if slot is None:
            self._check_room(request)
            slot = SessionSlot(VerifierSession.opened(request, gateway_id, now), now)
            self._slots[request.session_id] = slot
            self._tombstones.pop(request.session_id, None)
        elif slot.state.gateway_id != gateway_id:
            raise Refused("unknown_session", "the session belongs to another gateway", retryable=False)
        elif request.term > slot.state.term and not slot.state.rebind(request, now):
            self._release(slot)  # the context is for another text
        slot.renewed_at = now
        self.settle(slot)
        return slot

    def find(self, session_id: str) -> SessionSlot:
        """Raises Refused if the session is closed or was never opened here."""
        slot = self._slots.get(session_id)
        if slot is not None:
            return slot
        if session_id in self._tombstones:
            raise Refused("closed", "the session is closed", retryable=False)
        raise Refused("unknown_session", "no such session at this verifier", retryable=True)

    def close(self, session_id: str, term: int, now: float) -> SessionSlot | None:
        """Removes a session and leaves a tombstone for one lease; None if there is no such session."""
        slot = self._slots.pop(session_id, None)
        if slot is not None:
            self._tombstones[session_id] = Tombstone(max(term, slot.state.term), now + self._lease_ms)
            slot.state.close()
            self._release(slot)
            self.admit()
        return slot

    def renew(self, gateway_id: str, now: float) -> None:
        """Renews the leases of a gateway's unfinished sessions, so a finished one expires if its Close is lost."""
        for slot in self:
            if slot.state.gateway_id == gateway_id and not slot.state.finish:
                slot.renewed_at = now

    def expire(self, now: float) -> list[SessionSlot]:
        """Closes and returns sessions whose lease is over. Removes old tombstones."""
        self._tombstones = {key: stone for key, stone in self._tombstones.items() if stone.until > now}
        overdue = [slot.state for slot in self if now - slot.renewed_at > self._lease_ms]
        return [slot for state in overdue if (slot := self.close(state.session_id, state.term, now)) is not None]

    def prepare_pass(self) -> None:
        """Enlarges contexts that are too small for the next pass, oldest first, and assigns computed prefixes to those
        that wait for them. Call it between passes."""
        outgrown = [slot for slot in self if slot.has_outgrown]
        for slot in outgrown:
            self._grow(slot)
        if outgrown:
            self.admit()  # what is left of a preempted context may do for another session
        for slot in self:
            if slot.context is not None and slot.context.num_shared is None:
                self._engine.share(slot.context)
                slot.state.computed = slot.context.num_shared or 0

    def ready(self) -> list[SessionSlot]:
        """Sessions that the next pass can compute, oldest first."""
        return [
            slot
            for slot in self
            if slot.context is not None and slot.context.num_shared is not None and slot.state.ready
        ]

    def settle(self, slot: SessionSlot) -> None:
        """Releases the context of a finished session, then admits others."""
        if slot.state.finish:
            self._release(slot)
        self.admit()

    def admit(self) -> None:
        """Opens contexts for waiting sessions, oldest first, while KV cache is free.

        If the engine raises an error, drops the session without a tombstone and calls `refuse`.
        """
        for slot in list(self):
            if not slot.waits:
                continue
            state = slot.state
            try:
                slot.context = self._engine.open(state.request, state.tokens)
            except Exception as error:
                self._drop(slot, error)
                continue
            if slot.context is None:
                return
            state.computed = slot.context.num_shared or 0
            if slot.told_to_wait:
                self._tell(slot)

    def _grow(self, slot: SessionSlot) -> None:
        """Gives a session a larger context. The youngest sessions lose theirs for it, in the end the session itself."""
        num_tokens = likely_kv_tokens(slot.state.length, slot.state.limit - slot.state.length)
        try:
            while slot.context is not None and not self._engine.grow(slot.context, num_tokens):
                self._preempt(next(each for each in reversed(self._slots.values()) if each.context is not None))
        except Exception as error:
            self._release(slot)
            self._drop(slot, error)

    def _preempt(self, slot: SessionSlot) -> None:
        """Takes the context of a session, which waits for another one and then computes its text again."""
        self._release(slot)
        self.num_preemptions += 1
        self._tell(slot)

    def _drop(self, slot: SessionSlot, error: Exception) -> None:
        """Removes a session for which the engine can't make a context."""
        state = slot.state
        log.error("no KV cache can be made", session=state.session_id, tokens=state.length, exc_info=error)
        del self._slots[state.session_id]
        state.close()
        if isinstance(error, OutOfMemory):
            refusal = Refused("overloaded", "no memory is left for a KV cache", retryable=True)
        else:
            refusal = Refused("internal", "no KV cache can be created", retryable=True)
        self._refuse(slot, refusal)

    def _release(self, slot: SessionSlot) -> None:
        """Closes the slot's context. Other sessions of its scope may share its KV cache."""
        if slot.context is not None:
            self._engine.close(slot.context, slot.state.tokens[: slot.state.computed])
            slot.context = None
            slot.state.drop_cache()

    def _check(self, request: Open) -> None:
        info = self._engine.info
        length = check_text(request, info.vocab_size, info.max_context)
        if request.prompt_logprobs and request.logprobs is None:
            raise Refused("bad_request", "prompt_logprobs needs logprobs", retryable=False)
        if request.prompt_logprobs and not info.scores_text:
            message = "this verifier's engine computes no logprobs of prompts (echo with logprobs)"
            raise Refused("bad_request", message, retryable=False)
        if length > info.largest_context:
            message = f"{length} tokens don't fit the KV cache of {info.largest_context} tokens"
            raise Refused("too_long", message, retryable=False)

    def _check_room(self, request: Open) -> None:
        stone = self._tombstones.get(request.session_id)
        if stone is not None and request.term <= stone.term:
            raise Refused("closed", "the session is closed", retryable=False)
        if self.draining:
            raise Refused("draining", "the verifier is shutting down", retryable=True)
        if len(self._slots) >= self._max_sessions:
            raise Refused("overloaded", f"all {self._max_sessions} sessions are taken", retryable=True)
