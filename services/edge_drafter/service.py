"""A drafter on the bus: Speculate and Verdict in, Draft out (docs/protocol.md).

Invariant: a session listens only to the verifier that its Speculate named. Nothing here changes the text of a session.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import structlog

from services.edge_drafter.loop import DraftLoop
from services.edge_drafter.metrics import DrafterMetrics
from services.edge_drafter.model import DraftModel, load_draft
from services.edge_drafter.pairs import PairTable
from services.edge_drafter.sessions import DraftSessions, SessionSlot, steer
from services.edge_drafter.settings import DrafterSettings
from services.edge_drafter.steering import Steering
from services.edge_drafter.traces import DrafterTraces
from shared.bus.bus import Absent, Bus
from shared.bus.outbox import Outbox
from shared.grammar.compiling import CompileQueue
from shared.grammar.grammars import Grammars
from shared.protocol import subjects
from shared.protocol.messages import (
    Close,
    Draft,
    Failure,
    Heartbeat,
    Load,
    Message,
    Report,
    Speculate,
    Verdict,
    WindowDecision,
)
from shared.protocol.refusal import Refused
from shared.runtime.machine import machine_id
from shared.service import Context, run_service

log = structlog.get_logger(__name__)


LoadModel: TypeAlias = Callable[[DrafterSettings], DraftModel]


def load_model(settings: DrafterSettings) -> DraftModel:
    """The draft model that the settings name."""
    return load_draft(settings.draft, settings.num_threads, settings.prefix_cache_tokens, settings.providers)


def run(settings: DrafterSettings, load_model: LoadModel = load_model) -> None:
    """Runs a drafter process to its end. `load_model` may be replaced by a stand-in."""

    async def start(context: Context) -> Drafter:
        model = await asyncio.to_thread(load_model, settings)
        metrics, traces = DrafterMetrics(context.registry), DrafterTraces(context.tracing)
        drafter = Drafter(context.instance_id, settings, model, context.bus, metrics, traces)
        await drafter.loop.warm_up()
        return drafter

    run_service("drafter", settings, start)


def now_ms() -> float:
    return time.monotonic() * 1e3


class Drafter:
    """One drafter on one bus. Handlers change state and return, the loop drafts, the outbox publishes in order."""

    def __init__(
        self,
        instance_id: str,
        settings: DrafterSettings,
        model: DraftModel,
        bus: Bus,
        metrics: DrafterMetrics,
        traces: DrafterTraces | None = None,
    ) -> None:
        self.instance_id = instance_id
        self._settings = settings
        self._model = model
        self._bus = bus
        self._metrics = metrics
        self._traces = traces or DrafterTraces()
        metrics.show_nodes(model.num_nodes)
        grammars = Grammars(Path(settings.draft), model.vocab_size)
        self.table = DraftSessions(model, settings.max_sessions, settings.prefix_cache_tokens, grammars)
        self._compiling: CompileQueue[Speculate] = CompileQueue(
            grammars, settings.max_sessions, self._speculate, self._refuse_speculate
        )
        self.pairs = PairTable()
        self.steering = Steering(instance_id, settings.decision_ttl_s * 1e3)
        self.loop = DraftLoop(model, self.table, settings.feed_tokens, metrics, self._advance, self._fail)
        self._outbox = Outbox(bus)
        self._timers_changed = asyncio.Event()
        self._watched_until = math.inf  # when `_watch_silence` wakes next
        self._session_ended = asyncio.Event()
        self._sequence = 0
        self._named: tuple[str, ...] = ()  # the controllers that the last report named

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._outbox.run(), name="publish")
            await self._bus.subscribe(subjects.inbox("drafter", self.instance_id), self._receive)
            await self._bus.subscribe(subjects.all_broadcasts(Heartbeat, "controller"), self._on_heartbeat)
            tasks.create_task(self._send_heartbeats(), name="heartbeat")
            tasks.create_task(self._watch_silence(), name="watch-silence")
            tasks.create_task(self._report(), name="report")
            tasks.create_task(self._compiling.run(), name="compile grammars")
            tasks.create_task(self.loop.run(), name="draft")

    async def drain(self) -> None:
        self.table.draining = True
        self._send_heartbeat()
        while len(self.table):
            self._session_ended.clear()
            await self._session_ended.wait()

    # --- in --------------------------------------------------------------------------------------------------------

    def _receive(self, subject: str, message: Message | Absent) -> None:
        if isinstance(message, Absent) or not subjects.fits(subject, message):
            self._drop("wrong verb", subject=subject)
            return
        sender, now = subjects.sender(subject), now_ms()
        match message:
            case Verdict():
                self._on_verdict(sender, message, now)
            case Speculate():
                self._on_speculate(sender, message)
            case Close():
                self._on_close(sender, message)
            case WindowDecision():
                self._on_decision(sender, message, now)
            case Failure():
                self._on_failure(sender, message)
            case _:
                self._drop("not for a drafter", subject=subject)

    def _on_speculate(self, sender: str, request: Speculate) -> None:
        if not self._compiling.takes(sender, request):
            self._speculate(sender, request)

    def _speculate(self, sender: str, request: Speculate) -> None:
        now = now_ms()
        choice = self.steering.choice(request.verifier_id, now)
        try:
            slot = self.table.speculate(request, sender, choice, now)
        except Refused as refusal:
            self._refuse_speculate(sender, request, refusal)
            return
        self._traces.begin(slot)
        self._advance(slot)

    def _refuse_speculate(self, sender: str, request: Speculate, refusal: Refused) -> None:
        self._drop(refusal.code, session=request.session_id, sender=sender)
        self._refuse(sender, refusal.failure(request.session_id, request.term))

    def _on_verdict(self, sender: str, verdict: Verdict, now: float) -> None:
        slot = self.table.get(verdict.session_id)
        if slot is None or slot.verifier_id != sender:
            self._drop("unknown session" if slot is None else "foreign verifier", session=verdict.session_id)
            return
        before = slot.state.committed
        if not slot.state.on_verdict(verdict, now):
            self._drop("stale term", session=verdict.session_id)
            return
        self.pairs.observe(slot, verdict, slot.state.committed - before, now)
        self._advance(slot)

    def _on_close(self, sender: str, close: Close) -> None:
        self._compiling.forget(sender, close.session_id)
        slot = self.table.get(close.session_id)
        if slot is None:
            return  # over already
        if slot.gateway_id != sender or close.term < slot.state.term:
            self._drop("stale term or foreign gateway", session=close.session_id)
            return
        self._end(slot)

    def _on_failure(self, sender: str, failure: Failure) -> None:
        slot = self.table.get(failure.session_id)
        if slot is None or slot.verifier_id != sender or failure.term != slot.state.term:
            self._drop("stale failure", session=failure.session_id)
        elif failure.code == "closed":
            self._end(slot)
        elif failure.code == "unknown_session" and slot.state.was_heard:
            slot.state.close()
            self._give_up(slot, "the verifier has lost the session")
        # other failures may pass: the verifier may be opening the session, and silence ends it in time

    def _on_decision(self, sender: str, decision: WindowDecision, now: float) -> None:
        if decision.drafter_id != self.instance_id or not self.steering.decide(decision, sender, now):
            self._drop("decision not followed", sender=sender)
            return
        self._steer(decision.verifier_id, now)

    def _on_heartbeat(self, subject: str, message: Message | Absent) -> None:
        if not isinstance(message, Heartbeat) or not subjects.fits(subject, message):
            self._drop("foreign heartbeat", subject=subject)
        else:
            self.steering.on_heartbeat(message, now_ms())

    # --- sessions --------------------------------------------------------------------------------------------------

    def _steer(self, verifier_id: str, now: float) -> None:
        """Gives the current window of a verifier to its sessions."""
        choice = self.steering.choice(verifier_id, now)
        for slot in [slot for slot in self.table if slot.verifier_id == verifier_id and slot.is_adaptive]:
            steer(slot, choice)
            self._advance(slot)

    def _advance(self, slot: SessionSlot) -> None:
        """Sends the due Drafts of a session, counts its guesses and wakes the loop. A closed session is dropped."""
        state = slot.state
        while (draft := state.take_draft(now_ms())) is not None:
            self._send_draft(slot, draft)
        self._metrics.count_fates(self.pairs.absorb(slot), state.fates)
        if state.closed:
            self._end(slot)
            return
        if (due := state.resend_at) is not None and due < self._watched_until:
            self._timers_changed.set()
        self.loop.wake()

    def _send_draft(self, slot: SessionSlot, draft: Draft) -> None:
        self._outbox.put(subjects.to("verifier", slot.verifier_id, Draft, self.instance_id), draft)

    def _end(self, slot: SessionSlot, error: str = "") -> None:
        if self.table.get(slot.state.session_id) is not slot:
            return  # over before; the id may belong to a new session
        self.table.drop(slot.state.session_id)
        self._traces.end(slot, error)
        self._metrics.count_fates(self.pairs.absorb(slot), slot.state.fates)
        self.pairs.forget(slot)
        self._session_ended.set()

    def _fail(self, slot: SessionSlot) -> None:
        """Gives up a session on which the draft model failed; it goes on without this drafter."""
        slot.state.close()
        self._give_up(slot, "the draft model failed on the session")

    def _give_up(self, slot: SessionSlot, why: str) -> None:
        """Ends a session early and tells its gateway, which may choose another drafter."""
        refusal = Refused("internal", why, retryable=True)
        self._refuse(slot.gateway_id, refusal.failure(slot.state.session_id, slot.state.term))
        self._end(slot, refusal.code)

    def _refuse(self, gateway_id: str, failure: Failure) -> None:
        self._outbox.put(subjects.to("gateway", gateway_id, Failure, self.instance_id), failure)

    def _drop(self, reason: str, **about: str) -> None:
        self._metrics.dropped.labels(reason).inc()
        log.debug("dropped", reason=reason, **about)

    # --- periodic --------------------------------------------------------------------------------------------------

    async def _watch_silence(self) -> None:
        """Resends when a verdict is overdue; sleeps until the next one may be."""
        while True:
            now = now_ms()
            due = self._resend(now)
            self._timers_changed.clear()
            try:
                async with asyncio.timeout(None if due == math.inf else max(1e-3, (due - now) / 1e3)):
                    await self._timers_changed.wait()
            except TimeoutError:
                continue

    def _resend(self, now: float) -> float:
        """Resends what is overdue and gives up silent verifiers; returns when to look again."""
        for slot in list(self.table):
            draft = slot.state.on_timer(now)
            if draft is not None:
                self._send_draft(slot, draft)
            elif slot.state.closed:
                log.warning("verifier silent, session given up", session=slot.state.session_id)
                self._give_up(slot, "the verifier is silent towards this drafter")
        due = (at for slot in self.table if (at := slot.state.resend_at) is not None)
        self._watched_until = min(due, default=math.inf)
        return self._watched_until

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self._settings.report_s)
            now = now_ms()
            for verifier_id in self.steering.expire(now):
                self._steer(verifier_id, now)
            choices = {verifier_id: self.steering.choice(verifier_id, now) for verifier_id in self.pairs.verifier_ids()}
            windows = {verifier_id: choice.window for verifier_id, choice in choices.items()}
            reports = self.pairs.take_reports(list(self.table), windows, self.loop.cost.guess_ms)
            if reports:
                self._sequence += 1
                named = self.steering.named(now)
                report = Report(self.instance_id, self._sequence, reports, machine_id(), named)
                for controller_id in dict.fromkeys((*named, *self._named)):  # one that is no longer named forgets it
                    self._outbox.put(subjects.to("controller", controller_id, Report, self.instance_id), report)
                self._named = named
                for pair in reports:
                    name = subjects.instance_name(pair.verifier_id)
                    min_confidence = choices[pair.verifier_id].min_confidence
                    self._metrics.show_pair(name, pair.window, min_confidence, pair.rtt_ms)

    async def _send_heartbeats(self) -> None:
        while True:
            self._send_heartbeat()
            await asyncio.sleep(self._settings.heartbeat_s)

    def _send_heartbeat(self) -> None:
        self.loop.on_heartbeat()
        load = Load(
            num_sessions=len(self.table),
            max_sessions=self._settings.max_sessions,
            queue_tokens=sum(len(slot.state.tokens) - slot.state.computed for slot in self.table),
            token_budget=self._settings.feed_tokens,
            batch=self.loop.batch,
            step_ms=self.loop.step_ms,
            prefill_ms=self.loop.prefill_ms,
            rtt_ms=self.pairs.rtt_ms,
        )
        self._metrics.sessions.set(load.num_sessions)
        self._metrics.kv_bytes.set(self._model.kv_bytes)
        heartbeat = Heartbeat(
            service="drafter",
            instance_id=self.instance_id,
            interval_s=self._settings.heartbeat_s,
            models=[self._settings.model_name],
            max_context=self._model.max_context,
            vocab_size=self._model.vocab_size,
            fingerprint=self._model.name,
            load=load,
            draining=self.table.draining,
            provider=next(iter(self._model.num_nodes), ""),
        )
        self._outbox.put(subjects.broadcast(Heartbeat, "drafter", self.instance_id), heartbeat)
