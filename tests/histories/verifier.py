"""A verifier of a history: the service's own handlers, sessions and batches, over a target that costs nothing.

What is left out of the service is its event loop: here `settle` runs passes as `VerifyLoop.run` does, and `every` the
periodic tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from services.cloud_verifier.engine import EngineInfo
from services.cloud_verifier.loop import PassShare
from services.cloud_verifier.service import Verifier
from services.cloud_verifier.sessions import SessionSlot
from services.cloud_verifier.settings import VerifierSettings
from shared.bus.bus import Absent
from shared.protocol.messages import Close, Draft, Failure, Heartbeat, Message
from shared.protocol.verifier_session import VerifierSession
from tests.histories import schedule
from tests.histories.process import Process, at_once
from tests.histories.target import VOCABULARY, HashEngine, Text
from tests.histories.violation import Uncounted, Violation

STALL_MS = 200.0  # that a session which may run free waits for anything but its own passes
TOKEN_MS = 0.1
DRAFTER_LEASE_MS = 2000.0


@dataclass
class Watched:
    """What the history knows of one session at this verifier."""

    state: VerifierSession
    at_ms: float  # of the last commit, or since when it could go on
    text: Text
    heard: set[tuple[int, int, int]] = field(default_factory=set)  # term, epoch and position of guesses
    num_heard: int = 0
    was_free: bool = True
    term: int = 0
    epoch: int = 0


class VerifierProcess(Process):
    """One verifier."""

    service = "verifier"
    plan: schedule.Verifier

    def start(self) -> None:
        plan, rng = self.plan, self.rng
        info = EngineInfo(plan.fingerprint, VOCABULARY, 200, plan.kv_tokens, min(200, plan.kv_tokens), 16)
        self.engine = HashEngine(info, rng, plan.evicted)
        settings = VerifierSettings.model_construct(
            name=self.name,
            model_name="m",
            token_budget=32,
            prefill_chunk=plan.prefill_chunk,
            max_sessions=plan.max_sessions,
            lease_s=self.world.schedule.lease_s,
            drafter_lease_s=DRAFTER_LEASE_MS / 1e3,
        )
        self.verifier = Verifier(self.instance_id, settings, self.engine, self, Uncounted())  # type: ignore[arg-type]
        self.verifier._outbox = self  # type: ignore[assignment]
        if not self.world.schedule.learns_cost:
            self.verifier._cost.observe = lambda *_: None  # type: ignore[method-assign]
        self.table, self.loop = self.verifier.table, self.verifier.loop
        self.passing: Sequence[PassShare] = ()
        self.is_asleep = False
        self.watched: dict[str, Watched] = {}
        self.closed: dict[str, tuple[int, float]] = {}  # session id -> its term, and when it was closed
        self.told_failed: set[str] = set()
        self.heard_ms: dict[str, float] = {}  # gateway id -> when its last heartbeat came
        self.tick_ms = min(settings.lease_s, settings.drafter_lease_s) * 1e3 / 8
        self.every(settings.heartbeat_s * 1e3, self.verifier._send_heartbeat)
        self.after(self.tick_ms, self.every, self.tick_ms, self._tick)

    def receive(self, subject: str, message: Message | Absent) -> None:
        if isinstance(message, Heartbeat):
            self.heard_ms[message.instance_id] = self.now_ms
            self.verifier._on_heartbeat(subject, message)
            return
        if isinstance(message, Draft):
            self._expect_guesses(subject, message)
        watched = self.watched.get(message.session_id) if isinstance(message, Close) else None
        self.verifier._receive(subject, message)
        if isinstance(message, Draft):
            self._check_pending(message)
        elif isinstance(message, Close) and watched is not None:
            self._check_close(message, watched.state)

    def suffer(self, fault: schedule.Fault) -> None:
        """The engine fails for a while."""
        self.engine.errors = fault.share
        self.after(fault.for_ms, self._recover)

    def _recover(self) -> None:
        self.engine.errors = 0.0

    def drain(self, fault: schedule.Fault) -> None:
        self.table.draining = True
        self.verifier._send_heartbeat()

    def hand_over(self) -> None:
        left = {slot.state.session_id for slot in self.table}
        at_once(self.verifier._hand_over())
        if left - self.told_failed:
            raise Violation(f"{self.name} stops and tells no gateway of a session that is left")

    async def publish(self, subject: str, message: Message, *, absent_to: str | None = None) -> None:
        if isinstance(message, Failure):
            self.told_failed.add(message.session_id)
        await super().publish(subject, message, absent_to=absent_to)

    # --- passes ----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """What `VerifyLoop.run` does until it waits."""
        if not self.passing and (not self.is_asleep or self.loop._ready.is_set()):
            self._begin_pass()
        self._check_sessions()
        if self.table.draining and not self.table.num_active:
            self.world.bury(self)

    def _begin_pass(self) -> None:
        self.table.prepare_pass()
        self.passing = self.loop._collect() if self.table.ready() else ()
        self.is_asleep = not self.passing
        if self.is_asleep:
            self.loop._ready.clear()
            return
        num_tokens = sum(len(share.row.fed_ids) for share in self.passing)
        elapsed_ms = self.plan.pass_ms * (0.8 + 0.4 * self.rng.random()) + TOKEN_MS * num_tokens
        self.after(elapsed_ms, self._end_pass, elapsed_ms)

    def _end_pass(self, elapsed_ms: float) -> None:
        batch, self.passing = self.passing, ()
        outcome = self.loop._compute([share.compute for share in batch])
        self.loop._commit(batch, replace(outcome, elapsed_ms=elapsed_ms))

    def _tick(self) -> None:
        unfinished = [slot.state for slot in self.table if slot.state.finish is None]
        self.verifier._end_leases(self.world.clock.monotonic() * 1e3)
        self._check_leases(unfinished)
        held = {slot.context for slot in self.table if slot.context is not None}
        if held != self.engine.contexts:
            raise Violation(f"{self.name} has {len(self.engine.contexts)} contexts open, its sessions {len(held)}")

    # --- what must hold --------------------------------------------------------------------------------------------

    def _check_leases(self, before: Sequence[VerifierSession]) -> None:
        """No session ends whose gateway was heard, unless it has finished."""
        left = {slot.state.session_id for slot in self.table}
        for state in before:
            heard_ms = self.heard_ms.get(state.gateway_id, -math.inf)
            if state.session_id not in left and self.now_ms - heard_ms < 1e3 * self.world.schedule.lease_s:
                raise Violation(f"{self.name} ends the lease of #{state.session_id[-2:]}, whose gateway is alive")

    def _check_close(self, close: Close, state: VerifierSession) -> None:
        """Only a Close of the term or of a later one ends a session."""
        is_open = any(slot.state is state for slot in self.table)
        if is_open == (close.term >= state.term):
            raise Violation(f"{self.name} takes the Close of term {close.term} in term {state.term}: open is {is_open}")

    def _check_sessions(self) -> None:
        if len(self.table) > self.plan.max_sessions:
            raise Violation(f"{self.name} has more sessions than it may")
        if self.is_asleep and self.table.ready():
            raise Violation(f"{self.name} computes nothing though a session is ready")
        waiting = next((slot for slot in self.table if slot.waits), None)
        if waiting is not None and self.engine.reserved(waiting.state.limit) <= self.engine.free_kv_tokens:
            raise Violation(f"{self.name} has KV cache for the oldest session that waits for some")
        for slot in self.table:
            self._watch(slot)
        if len(self.watched) > len(self.table):
            ids = {slot.state.session_id for slot in self.table}
            for session_id in [session_id for session_id in self.watched if session_id not in ids]:
                watched = self.watched.pop(session_id)
                self._check_guesses(watched)
                if session_id not in self.engine.refused_ids:  # else it leaves no tombstone
                    self.closed[session_id] = watched.state.term, self.now_ms

    def _watch(self, slot: SessionSlot) -> None:
        state = slot.state
        watched = self.watched.get(state.session_id)
        if watched is None or watched.state is not state:
            if watched is not None:
                self._check_guesses(watched)
            watched = self.watched[state.session_id] = Watched(state, self.now_ms, Text(state.request.prompt_ids))
            term, closed_ms = self.closed.get(state.session_id, (0, -math.inf))
            if state.term <= term and self.now_ms - closed_ms < 1e3 * self.world.schedule.lease_s:
                raise Violation(f"{self.name} opens #{state.session_id[-2:]} again in term {state.term}")
        if len(state.tokens) != len(watched.text.tokens) or state.term != watched.term:
            num_given = len(state.request.prompt_ids) + len(state.request.committed_ids)
            watched.text.follow(state.tokens, num_given if state.term != watched.term else 0, self.plan.fingerprint)
            watched.term, watched.at_ms = state.term, self.now_ms
        if slot.context is not None and state.finish:
            raise Violation(f"{self.name} keeps the KV cache of #{state.session_id[-2:]}, which has finished")
        self._check_guesses(watched)
        self._check_pace(slot, watched)

    def _check_pace(self, slot: SessionSlot, watched: Watched) -> None:
        """A session that may run free goes on with every pass; any other waits for its drafter's lease at most."""
        state = slot.state
        is_free = state.draws
        can_go_on = slot.context is not None and state.finish is None and state.num_todo <= 1
        if not can_go_on or self.engine.errors or self.plan.evicted or is_free != watched.was_free:
            watched.at_ms = self.now_ms
        watched.at_ms, watched.was_free = max(watched.at_ms, self.resumed_ms), is_free
        most_ms = STALL_MS + 3 * self._longest_pass_ms + (0 if is_free else DRAFTER_LEASE_MS + self.tick_ms)
        if can_go_on and self.now_ms - watched.at_ms > most_ms:
            raise Violation(f"{self.name} lets #{state.session_id[-2:]} wait for {self.now_ms - watched.at_ms:.0f} ms")

    @property
    def _longest_pass_ms(self) -> float:
        return 1.2 * self.plan.pass_ms + TOKEN_MS * 32

    # --- guesses ---------------------------------------------------------------------------------------------------

    def _expect_guesses(self, subject: str, draft: Draft) -> None:
        """Notes the guesses that the session will count."""
        watched = self.watched.get(draft.session_id)
        sender = ".".join(subject.rsplit(".", 2)[-2:])
        if watched is None or (watched.state.term, watched.state.drafter_id) != (draft.term, sender):
            return
        if any(token >= VOCABULARY for token in draft.token_ids):
            return
        watched.num_heard += len(draft.token_ids)
        if not self.world.lies(sender):  # a liar goes back in the same epoch, where its guesses do not count
            watched.heard.update((draft.term, draft.epoch, draft.base + i) for i in range(len(draft.token_ids)))

    def _check_pending(self, draft: Draft) -> None:
        """Guesses of an older epoch do not wait."""
        watched = self.watched.get(draft.session_id)
        if watched is None or watched.state.term != draft.term:
            return
        guesses, epoch = watched.state.guesses, watched.epoch if watched.term == draft.term else 0
        if guesses.epoch > epoch and len(guesses.pending) > len(draft.token_ids):
            raise Violation(f"{self.name}: guesses of #{draft.session_id[-2:]} outlive their epoch")
        watched.epoch = guesses.epoch

    def _check_guesses(self, watched: Watched) -> None:
        """Each guess has one fate or waits. One that came again in the same epoch may count again as discarded."""
        state = watched.state
        row = state._row
        num = state.guesses.fates.total + len(state.guesses.pending) + (0 if row is None else len(row.guesses))
        if not len(watched.heard) <= num <= watched.num_heard:
            raise Violation(
                f"{self.name}: {num} guesses of #{state.session_id[-2:]} have a fate, of {len(watched.heard)} "
                f"different ones, {watched.num_heard} with repetitions"
            )

    # --- the end ---------------------------------------------------------------------------------------------------

    def left_over(self) -> list[str]:
        left = [f"{self.name} has #{slot.state.session_id[-2:]}" for slot in self.table]
        if self.table._tombstones:
            left.append(f"{self.name} has tombstones")
        if self.engine.contexts:
            left.append(f"{self.name} has contexts")
        return left

    def check_end(self) -> None:
        if self.engine.free_kv_tokens != self.plan.kv_tokens:
            raise Violation(f"{self.name} has lost KV cache")
