"""A drafter of a history: the service's own handlers and sessions, over a draft that knows the target.

What is left out of the service is its event loop: here `settle` runs steps as `DraftLoop.run` does, and wakes the watch
for silence as its task is woken.
"""

from __future__ import annotations

import math

from awc.policy import WindowChoice
from services.edge_drafter.service import Drafter
from services.edge_drafter.sessions import StepShare
from services.edge_drafter.settings import DrafterSettings
from shared.bus.bus import Absent
from shared.protocol.drafter_session import DrafterSession
from shared.protocol.messages import Close, Message
from tests.histories import schedule
from tests.histories.process import Process
from tests.histories.target import HashDraft, Text
from tests.histories.violation import Injected, Uncounted, Violation

FEED_TOKENS = 8
SOON_MS = 1.0
LARGEST_WINDOW = max(choice.window for choice in schedule.CHOICES)


class Steered:
    """The window that the schedule names, in place of a controller's decisions."""

    def __init__(self, choice: WindowChoice) -> None:
        self.now = choice

    def choice(self, verifier_id: str, now: float) -> WindowChoice:
        return self.now


class DrafterProcess(Process):
    """One drafter."""

    service = "drafter"
    plan: schedule.Drafter

    def start(self) -> None:
        plan = self.plan
        self.model = HashDraft(plan.name, plan.max_context, plan.accuracy, self.rng)
        settings = DrafterSettings.model_construct(
            name=self.name, draft="none", model_name="m", feed_tokens=FEED_TOKENS, max_sessions=plan.max_sessions
        )
        self.drafter = Drafter(self.instance_id, settings, self.model, self, Uncounted())  # type: ignore[arg-type]
        self.drafter._outbox = self  # type: ignore[assignment]
        self.drafter.steering = self.steered = Steered(plan.choice)  # type: ignore[assignment]
        self.table, self.loop = self.drafter.table, self.drafter.loop
        self.loop.step_ms, self.loop.prefill_ms = plan.step_ms, plan.step_ms / FEED_TOKENS
        self.step: list[StepShare] | None = None
        self.texts: dict[str, tuple[int, Text]] = {}  # session id -> its term, and what was committed
        self.is_asleep = False
        self.watch_at_ms = math.inf
        self._watch_silence()
        self.every(settings.heartbeat_s * 1e3, self.drafter._send_heartbeat)

    def receive(self, subject: str, message: Message | Absent) -> None:
        self.drafter._receive(subject, message)
        if isinstance(message, Close):
            slot = self.table.get(message.session_id)
            if slot is not None and slot.state.term <= message.term:
                raise Violation(f"{self.name} goes on after the Close of #{message.session_id[-2:]}")

    def suffer(self, fault: schedule.Fault) -> None:
        """Gets another window, or its model fails for a while."""
        if fault.kind == "steer":
            self.steered.now = fault.choice
            for verifier_id in self.drafter.pairs.verifier_ids():
                self.drafter._steer(verifier_id, self.world.clock.monotonic() * 1e3)
        else:
            self.model.errors = fault.share
            self.after(fault.for_ms, self._recover)

    def _recover(self) -> None:
        self.model.errors = 0.0

    def drain(self, fault: schedule.Fault) -> None:
        self.table.draining = True
        self.drafter._send_heartbeat()

    def hand_over(self) -> None:
        """A drafter tells nobody that it ends."""

    # --- steps -----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """What `DraftLoop.run` does until it waits, and the watch for silence."""
        if self.step is None and (not self.is_asleep or self.loop._ready.is_set()):
            self._begin_step()
        if self.drafter._timers_changed.is_set():
            self._watch_silence()
        self._check_sessions()
        if self.table.draining and not len(self.table):
            self.world.bury(self)

    def _begin_step(self) -> None:
        shares = self.table.begin_step(FEED_TOKENS)
        self.is_asleep = not shares
        if not shares:
            self.loop._ready.clear()
            return
        self.step = shares
        for share in shares:
            state, cache = share.slot.state, self.model.at_start(share.row)
            if cache.text[: share.step.start] != state.tokens[: share.step.start]:
                raise Violation(f"{self.name}: the draft's cache holds another text of #{state.session_id[-2:]}")
        self.after(self.plan.step_ms * (0.8 + 0.4 * self.rng.random()), self._end_step, shares)

    def _end_step(self, shares: list[StepShare]) -> None:
        self.step = None
        for share in shares:
            try:
                guess = self.model.guess_after(share.row)
            except Injected:
                self.drafter._fail(share.slot)
                continue
            share.slot.state.end_step(share.step, guess, self.rng.random())
            self.drafter._advance(share.slot)

    # --- silence ---------------------------------------------------------------------------------------------------

    def _watch_silence(self) -> None:
        now_ms = self.world.clock.monotonic() * 1e3
        due_ms = self.drafter._resend(now_ms)
        self.drafter._timers_changed.clear()
        self.watch_at_ms = self.now_ms + max(SOON_MS, due_ms - now_ms)
        if self.watch_at_ms < math.inf:
            self.world.at(self.watch_at_ms, self, self._wake, self.watch_at_ms)

    def _wake(self, at_ms: float) -> None:
        if at_ms == self.watch_at_ms:  # else it was woken before
            self._watch_silence()

    # --- what must hold --------------------------------------------------------------------------------------------

    def _check_sessions(self) -> None:
        for slot in self.table:
            state = slot.state
            if state.drafted != state.fates.total + state.num_guesses:
                raise Violation(f"{self.name}: a guess of #{state.session_id[-2:]} has no fate, or two")
            self._check_text(state)
            if state.num_guesses > LARGEST_WINDOW:
                raise Violation(f"{self.name}: {state.num_guesses} guesses of #{state.session_id[-2:]} have no verdict")

    def _check_text(self, state: DrafterSession) -> None:
        term, text = self.texts.get(state.session_id, (-1, None))
        if text is None:
            text = Text(state.request.prompt_ids)
        num_given = len(state.request.prompt_ids) + len(state.request.committed_ids) if term != state.term else 0
        if state.committed != len(text.tokens) or num_given:
            text.follow(state.tokens[: state.committed], num_given, *self.world.numerics)
            self.texts[state.session_id] = state.term, text

    def left_over(self) -> list[str]:
        return [f"{self.name} drafts for #{slot.state.session_id[-2:]}" for slot in self.table]

    def check_end(self) -> None:
        if any(pair.last_verdict for pair in self.drafter.pairs._pairs.values()):
            raise Violation(f"{self.name} has times of sessions that are over")
