"""A verifier on the bus: it receives drafts and sends verdicts (docs/protocol.md).

Invariant: a session accepts drafts only from the drafter that its Open named. The subject alone identifies the sender,
and answers go only to subjects derived from the sender's id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import structlog
from msgspec import structs

from services.cloud_verifier.engine import Engine
from services.cloud_verifier.loop import VerifyLoop, engine_thread
from services.cloud_verifier.metrics import VerifierMetrics
from services.cloud_verifier.sessions import SessionSlot, SessionTable
from services.cloud_verifier.settings import VerifierSettings
from services.cloud_verifier.traces import VerifierTraces
from shared.bus.bus import Absent, Bus
from shared.bus.outbox import Outbox
from shared.grammar.compiling import CompileQueue
from shared.policies.batching import Batcher, PassCost
from shared.protocol import subjects
from shared.protocol.messages import (
    Close,
    Draft,
    Failure,
    Heartbeat,
    Load,
    Message,
    Open,
    Opened,
    Poll,
    Service,
    Verdict,
)
from shared.protocol.refusal import Refused
from shared.runtime.machine import machine_id
from shared.service import Context, run_service

log = structlog.get_logger(__name__)


LoadEngine: TypeAlias = Callable[[VerifierSettings], Engine[Any]]


def run(settings: VerifierSettings, load_engine: LoadEngine) -> None:
    """Runs a verifier process until SIGTERM. `load_engine` runs in the engine's thread and may block."""
    loaded: list[Engine[Any]] = []
    executor = engine_thread()

    async def start(context: Context) -> Verifier:
        engine = await asyncio.get_running_loop().run_in_executor(executor, load_engine, settings)
        loaded.append(engine)
        metrics = VerifierMetrics(context.registry)
        traces = VerifierTraces(context.tracing)
        verifier = Verifier(context.instance_id, settings, engine, context.bus, metrics, traces, executor)
        await verifier.loop.warm_up()
        return verifier

    try:
        run_service("verifier", settings, start)
    finally:
        for engine in loaded:
            engine.shutdown()


def now_ms() -> float:
    return time.monotonic() * 1e3


class Verifier:
    """Handlers change the table and return at once. The loop computes. The outbox publishes in order."""

    def __init__(
        self,
        instance_id: str,
        settings: VerifierSettings,
        engine: Engine[Any],
        bus: Bus,
        metrics: VerifierMetrics,
        traces: VerifierTraces | None = None,
        executor: ThreadPoolExecutor | None = None,
    ) -> None:
        """executor: in which the engine was loaded."""
        self.instance_id = instance_id
        self._settings = settings
        self.engine = engine
        self._bus = bus
        self._metrics = metrics
        self._traces = traces or VerifierTraces()
        self._cost = PassCost()
        batcher = Batcher(settings.token_budget, settings.prefill_chunk, self._cost)
        lease_ms = settings.lease_s * 1e3
        self.table = SessionTable(engine, settings.max_sessions, lease_ms, self._on_refused, self._send_opened)
        self.loop = VerifyLoop(
            engine, self.table, batcher, self._cost, metrics, self._answer, self._fail, settings.lookup_tokens, executor
        )
        self._outbox = Outbox(bus)
        self._compiling: CompileQueue[Open] = CompileQueue(
            engine.grammars, settings.max_sessions, self._open, self._refuse_open
        )
        self._session_ended = asyncio.Event()
        self._num_shared_counted = self._num_preemptions_counted = 0

    async def run(self) -> None:
        """Serves until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._outbox.run(), name="publish")
            await self._bus.subscribe(subjects.inbox("verifier", self.instance_id), self._receive)
            await self._bus.subscribe(subjects.all_broadcasts(Heartbeat, "gateway"), self._on_heartbeat)
            tasks.create_task(self._send_heartbeats(), name="heartbeat")
            tasks.create_task(self._expire(), name="expire")
            tasks.create_task(self._compiling.run(), name="compile grammars")
            tasks.create_task(self.loop.run(), name="verify")

    async def drain(self) -> None:
        """Accepts no new session and returns when every open one has finished or is closed. When it is cancelled, it
        closes those that are left, and their gateways open them elsewhere."""
        self.table.draining = True
        self._send_heartbeat()
        try:
            while self.table.num_active:
                self._session_ended.clear()
                await self._session_ended.wait()
        except asyncio.CancelledError:
            await self._hand_over()
            raise

    async def _hand_over(self) -> None:
        """Not through the outbox, which ends with the process."""
        refusal = Refused("draining", "the verifier has shut down", retryable=True)
        for slot in sorted(
            self.table, key=lambda slot: not slot.waits
        ):  # those that wait first, so that none gets room
            state = slot.state
            self._forget(self.table.close(state.session_id, state.term, now_ms()), refusal.code)
            subject = subjects.to("gateway", state.gateway_id, Failure, self.instance_id)
            await self._bus.publish(subject, refusal.failure(state.session_id, state.term))

    # --- in --------------------------------------------------------------------------------------------------------

    def _receive(self, subject: str, message: Message | Absent) -> None:
        if isinstance(message, Absent) or not subjects.fits(subject, message):
            self._drop("wrong verb", subject=subject)
            return
        sender, now = subjects.sender(subject), now_ms()
        match message:
            case Draft():
                self._on_draft(sender, message, now)
            case Open():
                self._on_open(sender, message)
            case Poll():
                self._on_poll(sender, message, now)
            case Close():
                self._on_close(sender, message, now)
            case _:
                self._drop("not for a verifier", subject=subject)

    def _on_draft(self, sender: str, draft: Draft, now: float) -> None:
        try:
            state = self.table.find(draft.session_id).state
        except Refused as refusal:
            self._drop(refusal.code, session=draft.session_id, sender=sender)
            self._send("drafter", sender, refusal.failure(draft.session_id, draft.term))
            return
        if sender != state.drafter_id:
            self._drop("foreign drafter", session=draft.session_id, sender=sender)
        elif draft.term != state.term:
            self._drop("stale term", session=draft.session_id, sender=sender)
        elif any(token >= self.engine.info.vocab_size for token in draft.token_ids):
            self._drop("outside the vocabulary", session=draft.session_id, sender=sender)
        else:
            answer = state.on_draft(draft, now)
            if answer is not None:
                self._send_to_drafter(sender, answer)
            self.loop.wake()

    def _on_open(self, sender: str, request: Open) -> None:
        if not self._compiling.takes(sender, request):
            self._open(sender, request)

    def _open(self, sender: str, request: Open) -> None:
        try:
            slot = self.table.open(request, sender, now_ms())
        except Refused as refusal:
            self._refuse_open(sender, request, refusal)
            return
        if slot not in self.table:
            return  # refused: _on_refused sent the failure
        self._traces.begin(slot)
        if request.term == slot.state.term:
            self._send_opened(slot)
        else:
            self._drop("stale term", session=request.session_id, sender=sender)
        if slot.state.finish:
            self._session_ended.set()
        self.loop.wake()

    def _refuse_open(self, sender: str, request: Open, refusal: Refused) -> None:
        self._drop(refusal.code, session=request.session_id, sender=sender)
        self._send("gateway", sender, refusal.failure(request.session_id, request.term))

    def _on_poll(self, sender: str, poll: Poll, now: float) -> None:
        try:
            slot = self.table.find(poll.session_id)
        except Refused as refusal:
            self._send("gateway", sender, refusal.failure(poll.session_id, poll.term))
            return
        answer = slot.state.on_poll(poll, now) if slot.state.gateway_id == sender else None
        if answer is None:
            self._drop("stale term or foreign gateway", session=poll.session_id, sender=sender)
            return
        slot.renewed_at = now
        self._send("gateway", sender, answer)

    def _on_close(self, sender: str, close: Close, now: float) -> None:
        self._compiling.forget(sender, close.session_id)
        try:
            state = self.table.find(close.session_id).state
        except Refused:
            return  # closed already, or never opened here
        if state.gateway_id != sender or close.term < state.term:
            self._drop("stale term or foreign gateway", session=close.session_id, sender=sender)
            return
        self._forget(self.table.close(close.session_id, close.term, now))

    def _on_heartbeat(self, subject: str, message: Message | Absent) -> None:
        if isinstance(message, Heartbeat) and subjects.fits(subject, message):
            self.table.renew(subjects.sender(subject), now_ms())

    # --- out -------------------------------------------------------------------------------------------------------

    def _send_opened(self, slot: SessionSlot) -> None:
        """Answers an Open. Called again when the session gets the KV cache that it waits for, or loses it."""
        state, has_room = slot.state, not slot.waits
        self._traces.tell_room(slot, has_room=has_room)
        slot.told_to_wait = not has_room
        lease_s, fingerprint = self._settings.lease_s, self.engine.info.fingerprint
        opened = Opened(state.session_id, state.term, lease_s, self._load(), fingerprint, has_room)
        self._send("gateway", state.gateway_id, opened)

    def _answer(self, slot: SessionSlot, verdict: Verdict) -> None:
        """Sends the verdict of a pass: to the drafter first, or the gateway's Close could overtake the last one."""
        if slot.state.drafter_id:
            self._send_to_drafter(slot.state.drafter_id, verdict)
        self._send("gateway", slot.state.gateway_id, verdict)
        self._count(slot)
        if verdict.finish:
            self._session_ended.set()

    def _send_to_drafter(self, drafter_id: str, verdict: Verdict) -> None:
        """A drafter does not use logprobs."""
        self._send("drafter", drafter_id, structs.replace(verdict, logprobs=None))

    def _fail(self, slot: SessionSlot) -> None:
        """Closes a session that can't be computed. Its gateway may open it at another verifier."""
        state = slot.state
        state.drop_cache()  # its KV cache may be wrong: other sessions must not share it
        refusal = Refused("internal", "the target model failed on this session", retryable=True)
        self._send("gateway", state.gateway_id, refusal.failure(state.session_id, state.term))
        self._forget(self.table.close(state.session_id, state.term, now_ms()), refusal.code)

    def _on_refused(self, slot: SessionSlot, refusal: Refused) -> None:
        """The table dropped a session, possibly long after its Open. Its gateway may open it at another verifier."""
        state = slot.state
        self._drop(refusal.code, session=state.session_id, sender=state.gateway_id)
        self._send("gateway", state.gateway_id, refusal.failure(state.session_id, state.term))
        if refusal.code == "internal":
            self.loop.count_failure([state.session_id])
        self._forget(slot, refusal.code)

    def _forget(self, slot: SessionSlot | None, error: str = "") -> None:
        if slot is not None:
            self._count(slot)
            self._traces.end(slot, error)
            self._session_ended.set()
            self.loop.wake()

    def _count(self, slot: SessionSlot) -> None:
        tally = slot.state.tally
        self._metrics.count_guesses(slot.counted, tally)
        slot.counted = tally

    def _drop(self, reason: str, **about: str) -> None:
        self._metrics.dropped.labels(reason).inc()
        log.debug("dropped", reason=reason, **about)

    def _send(self, service: Service, receiver: str, message: Message) -> None:
        self._outbox.put(subjects.to(service, receiver, type(message), self.instance_id), message)

    # --- periodic tasks --------------------------------------------------------------------------------------------

    async def _send_heartbeats(self) -> None:
        while True:
            self._send_heartbeat()
            await asyncio.sleep(self._settings.heartbeat_s)

    def _send_heartbeat(self) -> None:
        heartbeat = Heartbeat(
            service="verifier",
            instance_id=self.instance_id,
            interval_s=self._settings.heartbeat_s,
            models=[self._settings.model_name],
            max_context=self.table.max_context,
            vocab_size=self.engine.info.vocab_size,
            fingerprint=self.engine.info.fingerprint,
            load=self._load(),
            draining=self.table.draining,
            machine=machine_id(),
        )
        self._outbox.put(subjects.broadcast(Heartbeat, "verifier", self.instance_id), heartbeat)

    def _load(self) -> Load:
        load = Load(
            num_sessions=len(self.table),
            max_sessions=self._settings.max_sessions,
            queue_tokens=self.loop.queue_tokens,
            token_budget=self._settings.token_budget,
            batch=self.loop.batch,
            free_kv_tokens=self.table.free_kv_tokens,
            kv_tokens=self.engine.info.kv_tokens,
            step_ms=self.loop.pass_ms,
            prefill_ms=self._cost.prefill_ms,
        )
        self._metrics.observe_load(load, self.table.occupancy)
        num_shared = self.engine.num_shared_tokens
        self._metrics.prefix_tokens.inc(num_shared - self._num_shared_counted)
        self._num_shared_counted = num_shared
        num_preemptions = self.engine.num_preemptions + self.table.num_preemptions
        self._metrics.preemptions.inc(num_preemptions - self._num_preemptions_counted)
        self._num_preemptions_counted = num_preemptions
        return load

    async def _expire(self) -> None:
        """Ends the leases of silent gateways, of sessions whose Close was lost, and of drafters that are waited for."""
        pause_s = min(self._settings.lease_s, self._settings.drafter_lease_s) / 8
        while True:
            await asyncio.sleep(pause_s)
            self._end_leases(now_ms())

    def _end_leases(self, now: float) -> None:
        for slot in self.table.expire(now):
            log.warning("lease over, session closed", session=slot.state.session_id, finish=slot.state.finish)
            self._metrics.expired_sessions.inc()
            self._forget(slot, "lease_over")
        for slot in self.table:
            if slot.state.expire_drafter(now, self._settings.drafter_lease_s * 1e3):
                self.loop.wake()
