"""The sessions of a drafter, and the steps of the draft model that they share.

Invariant: a prompt delays the next guess of another session by one chunk at most. Times are milliseconds of one
monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from msgspec import structs

from awc.policy import WindowChoice
from services.edge_drafter.graphs.graph import DraftCache, Prefix
from services.edge_drafter.guess import GuessInputs
from services.edge_drafter.model import DraftModel, DraftRow
from services.edge_drafter.prefixes import MIN_TOKENS, Gap, HeldText, PrefixCache
from shared.grammar.grammars import Grammars
from shared.grammar.running_grammar import rule_of
from shared.policies.reading import FIRST_READ, num_left_out
from shared.policies.stepping import form_step, turn_of
from shared.protocol.drafter_session import DrafterSession, DraftStep
from shared.protocol.guesses import Fates
from shared.protocol.messages import Speculate
from shared.protocol.refusal import Refused, check_text
from shared.protocol.running_adjustment import RunningAdjustment
from shared.runtime.tracing import WorkTrace


@dataclass(slots=True)
class ReportedCounts:
    """Counts of a session that its pair has taken already. Further counts go to the pair of `verifier_id`."""

    verifier_id: str
    drafted: int = 0
    fates: Fates = field(default_factory=Fates)


@dataclass(slots=True, eq=False)
class SessionSlot:
    """A session with its cache and its gateway. The cache holds the computed tokens without those of the gap."""

    state: DrafterSession
    cache: DraftCache
    gateway_id: str
    running: RunningAdjustment | None  # of the text at the start of the newest step
    reported: ReportedCounts = field(init=False)
    trace: WorkTrace | None = None  # no null object, whose calls would be on the token path
    gap: Gap | None = None

    def __post_init__(self) -> None:
        self.reported = ReportedCounts(self.verifier_id)

    @property
    def verifier_id(self) -> str:
        return self.state.request.verifier_id

    @property
    def is_adaptive(self) -> bool:
        return self.state.request.speculation.mode == "adaptive"

    @property
    def held(self) -> HeldText | None:
        """What other sessions may take over of what it has read; None: nothing. Not during its step."""
        scope = self.state.request.cache_scope
        if scope is None:
            return None
        gap = self.gap if self.gap and self.state.computed >= self.gap.end else None
        return HeldText(scope, self.state.tokens[: self.state.computed], self.cache, gap)

    def leave_out(self, token_ms: float) -> None:
        """Leaves out, once, a part of the tokens that it has to read, at `token_ms` each."""
        if self.gap is None and (num := num_left_out(self.state.num_todo, token_ms)):
            start = max(self.state.computed, FIRST_READ)
            self.gap = Gap(start, start + num)
        if self.gap and self.gap.start <= self.state.computed < self.gap.end:
            self.state.take_over(self.gap.end)

    def forget_gap(self) -> None:
        """After a change of its text: if it changed before the end of the gap, the draft reads anew from the gap on."""
        if self.gap and self.state.computed < self.gap.end:
            self.state.drop_cache(self.gap.start)
            self.gap = None

    def begin_step(self, max_tokens: int, prefix: Prefix | None = None) -> StepShare:
        """The session's share of the next step, with at most `max_tokens` tokens behind the prefix."""
        gap = self.gap
        if gap and self.state.computed < gap.start:
            max_tokens = min(max_tokens, gap.start - self.state.computed)
        step = self.state.begin_step(max_tokens)
        start = step.start - gap.length if gap and step.start >= gap.end else step.start
        row = DraftRow(self.cache, start, step.fed_ids, prefix)
        return StepShare(self, step, row, self._guess_inputs(step))

    def _guess_inputs(self, step: DraftStep) -> GuessInputs | None:
        if self.running is not None:
            self.running.roll_back(step.start)  # the text up to there is that of the last step
            self.running.extend(self.state.tokens[self.running.length :])
        return GuessInputs.of(self.state, self.running) if step.draws else None


@dataclass(frozen=True, slots=True)
class StepShare:
    """One session's share of a draft step."""

    slot: SessionSlot
    step: DraftStep
    row: DraftRow  # with the session's cache at the start of the step
    inputs: GuessInputs | None  # what its guess depends on; None: the step yields none


class DraftSessions:
    """All sessions of one drafter, in the order of their last turn, oldest first."""

    def __init__(
        self, model: DraftModel, max_sessions: int, prefix_cache_tokens: int = 0, grammars: Grammars | None = None
    ) -> None:
        self._model = model
        self._grammars = grammars or Grammars()
        self._max_sessions = max_sessions
        self._prefixes = PrefixCache(prefix_cache_tokens)
        self._slots: dict[str, SessionSlot] = {}
        self.draining = False

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[SessionSlot]:
        return iter(self._slots.values())

    def get(self, session_id: str) -> SessionSlot | None:
        return self._slots.get(session_id)

    def speculate(self, request: Speculate, gateway_id: str, choice: WindowChoice, now: float) -> SessionSlot:
        """Starts a session, or rebinds one to a higher term and keeps the cache of the common text. Raises Refused.

        An answer that may exceed the draft's context is drafted up to it.
        """
        request = self._fitted(request)
        check_text(request, self._model.vocab_size, self._model.max_context)
        slot = self._slots.get(request.session_id)
        if slot is None:
            return self._start(request, gateway_id, choice, now)
        if slot.gateway_id != gateway_id:
            raise Refused("unknown_session", "the session belongs to another gateway", retryable=False)
        if request.term > slot.state.term:
            slot.state.rebind(request, now)
            slot.running = self._running(request)
            if slot.state.limit > slot.cache.capacity:  # a larger cache; the text is fed again
                slot.cache = self._model.new_cache(slot.state.limit)
                slot.state.drop_cache()
            slot.forget_gap()
            steer(slot, choice)
        return slot

    def drop(self, session_id: str) -> SessionSlot | None:
        """Removes a session; its guesses without a verdict count as discarded. Its cache is kept for later prompts."""
        slot = self._slots.pop(session_id, None)
        if slot is None:
            return None
        if not slot.state.closed:
            slot.state.close()
        if (held := slot.held) is not None:
            self._prefixes.keep(held)
        return slot

    def begin_step(self, feed_tokens: int, token_ms: float = 0.0) -> list[StepShare]:
        """Begins the next step. Its sessions move to the end of the queue. Nothing if no session wants a step.

        token_ms: of a token of a prompt. Of a text that would take too long to read, a part is left out.
        """
        ready = [slot for slot in self if slot.state.wants_step]
        if not ready:
            return []
        num_todo = np.array([slot.state.num_todo for slot in ready])
        turn = turn_of(num_todo, self._model.max_rows)
        prefix = self._take_prefix(ready[turn])
        ready[turn].leave_out(token_ms)
        num_todo[turn] = ready[turn].state.num_todo
        fed = form_step(num_todo, turn, self._model.max_rows, feed_tokens).tolist()
        shares = [
            slot.begin_step(num, prefix if place == turn else None)
            for place, (slot, num) in enumerate(zip(ready, fed, strict=True))
            if num
        ]
        for share in shares:
            session_id = share.slot.state.session_id
            self._slots[session_id] = self._slots.pop(session_id)
        return shares

    def _take_prefix(self, slot: SessionSlot) -> Prefix | None:
        """What the session whose turn it is takes over from a text that begins like its own. Kept texts give way first.

        No model step runs now, so each cache holds what its session has computed.
        """
        prefixes, state, max_kept = self._prefixes, slot.state, 0
        if len(prefixes):
            longest = max(len(each.state.tokens) for each in self)
            max_kept = self._model.num_caches(len(self), longest) - len(self)
        scope, prefix = state.request.cache_scope, None
        if scope is not None and prefixes.max_tokens and state.num_todo > MIN_TOKENS and slot.gap is None:
            others = [each for each in self if each is not slot and each.state.request.cache_scope == scope]
            live = [held for other in others if (held := other.held) is not None]
            found = prefixes.take(scope, state.tokens, state.computed, live, max_kept)
            if found is not None:
                prefix, slot.gap = found
                state.take_over(prefix.length + (slot.gap.length if slot.gap else 0))
        prefixes.shrink(max_kept)
        return prefix

    def _fitted(self, request: Speculate) -> Speculate:
        """The request, cut to the model's context. Raises Refused if there is no room for a guess."""
        context, num_prompt = self._model.max_context, len(request.prompt_ids)
        length = num_prompt + len(request.committed_ids)
        if length >= context:
            message = f"a text of {length} tokens leaves no room in the context of {context}"
            raise Refused("too_long", message, retryable=False)
        most = context - num_prompt
        max_tokens, min_tokens = min(request.max_tokens, most), min(request.min_tokens, most)
        return structs.replace(request, max_tokens=max_tokens, min_tokens=min_tokens)

    def _start(self, request: Speculate, gateway_id: str, choice: WindowChoice, now: float) -> SessionSlot:
        if self.draining:
            raise Refused("draining", "the drafter is shutting down", retryable=True)
        if len(self._slots) >= self._max_sessions:
            raise Refused("overloaded", f"all {self._max_sessions} sessions are taken", retryable=True)
        state = DrafterSession.started(request, choice.window, choice.chunk, choice.free_run, now)
        slot = SessionSlot(state, self._model.new_cache(state.limit), gateway_id, self._running(request))
        steer(slot, choice)
        self._slots[request.session_id] = slot
        return slot

    def _running(self, request: Speculate) -> RunningAdjustment | None:
        return RunningAdjustment.of(request, rule_of(request, self._grammars, self._model.vocab_size))


def steer(slot: SessionSlot, choice: WindowChoice) -> None:
    """Sets a session's window and threshold: the request's own in static mode, else the controller's."""
    speculation = slot.state.request.speculation
    if slot.is_adaptive:
        slot.state.steer(choice.window, choice.chunk, choice.free_run, choice.min_confidence)
    else:
        slot.state.steer(speculation.window, choice.chunk, choice.free_run, speculation.min_confidence)
