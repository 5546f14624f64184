"""One session of the gateway: a pure state machine (docs/protocol.md, "Gateway"). No I/O and no clock: every call gets
`now` in seconds.

Invariant: the answer's tokens are those of one VerdictStream, so no token is lost or repeated when peers come and go.
Every change of verifier or drafter raises the term. Every instance that was ever bound gets a Close in the end.

opening -(Opened)-> running -(verifier lost)-> opening at another verifier, or waiting where there is none -> over

The parts of a session have files of their own: its tokens (verdict_stream.py), its drafter (drafter_binding.py), its
load on the fleet (load_accounting.py), its messages (outbox.py), the instances it avoids (quarantine.py), its search
for KV cache elsewhere (room_search.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Self

from services.gateway.errors import SessionFailed
from services.gateway.fleet.guesses import further
from services.gateway.session.binding import Binding
from services.gateway.session.drafter_binding import DrafterBinding
from services.gateway.session.generation import Generation
from services.gateway.session.load_accounting import LoadAccounting
from services.gateway.session.outbox import Send, SessionOutbox
from services.gateway.session.placement import Placement
from services.gateway.session.quarantine import Quarantine
from services.gateway.session.room_search import RoomSearch
from services.gateway.session.timeouts import SessionTiming
from services.gateway.session.verdict_stream import Committed, ConflictingVerdict, TallySum, VerdictStream
from shared.protocol.messages import Failure, FailureCode, Open, Opened, Poll, Service, Verdict

Phase = Literal["opening", "running", "waiting", "over"]

PASSING: tuple[FailureCode, ...] = ("overloaded", "draining")  # refusals that say nothing against the session
ANSWERS: tuple[FailureCode, ...] = ("overloaded", "closed", "unknown_session")  # of a verifier that serves on
NUM_ABSENTS = 2  # absent verifiers are given up after so many in a row: one alone is only a hint


@dataclass(slots=True)
class Session:
    """One generation: opened, speculated for, followed, moved when a peer is lost, closed."""

    generation: Generation
    placement: Placement
    timing: SessionTiming
    stream: VerdictStream
    _drafter: DrafterBinding
    _load: LoadAccounting
    _quarantine: Quarantine
    _outbox: SessionOutbox
    tallies: TallySum = field(default_factory=TallySum)
    num_failovers: int = 0  # changes of verifier after the first Opened
    num_drafter_changes: int = 0
    num_conflicts: int = 0  # verdicts that contradict tokens already sent on
    bindings: list[Binding] = field(default_factory=list)  # by term
    phase: Phase = "opening"
    term: int = 0
    verifier_id: str | None = None
    was_opened: bool = False
    failure: SessionFailed | None = None
    _num_taken: int = 0  # tokens that the owner has taken
    num_shown: int | None = None  # tokens of a text that ended before its session
    _fingerprint: str = ""  # of this term's verifier
    _worked: list[str] = field(default_factory=list)  # fingerprints whose tokens the answer has, in order
    _refusal: Failure | None = None  # the last one
    _unanswered_since: float | None = None  # when the first Open or Poll was sent that no verifier has answered yet
    _retry_at: float = 0.0
    _num_opens: int = 0  # in this term
    _num_absents: int = 0
    _counted_term: int = 1  # whose verdicts count for its drafter; the first of a new one holds the fates of the last
    _num_idle_terms: int = 0  # in a row that brought no token
    _rebound: bool = False  # this term's verifier had the session before
    _lacks_room: bool = False  # it lets the session wait for KV cache
    _search: RoomSearch = field(default_factory=RoomSearch)

    @classmethod
    def started(cls, generation: Generation, placement: Placement, timing: SessionTiming, now: float) -> Self:
        """A session that has chosen its verifier and sends it an Open, or one that failed at once."""
        quarantine, wants_logprobs = Quarantine(), generation.num_top is not None
        session = cls(
            generation,
            placement,
            timing,
            VerdictStream(
                len(generation.prompt_ids), generation.max_tokens, timing.poll, wants_logprobs, generation.scored_ids
            ),
            DrafterBinding(generation, placement, timing, quarantine),
            LoadAccounting(placement.fleet),
            quarantine,
            SessionOutbox(generation.session_id),
        )
        session._place(now)
        return session

    # --- what the owner reads --------------------------------------------------------------------------------------

    @property
    def session_id(self) -> str:
        return self.generation.session_id

    @property
    def drafter_id(self) -> str | None:
        return self._drafter.drafter_id

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer so far, up to the end of its text."""
        return self.stream.num_answered if self.num_shown is None else self.num_shown

    @property
    def fingerprints(self) -> list[str]:
        """Numerics of the verifiers whose tokens the answer has, in order; before any token, those of the current
        verifier."""
        return self._worked or [self._fingerprint]

    @property
    def due(self) -> float | None:
        """When to call `on_timer` unless something happens before; None once the session is over."""
        if self.phase == "over":
            return None
        next_try = self.stream.due if self.phase == "running" else self._retry_at
        return min((each for each in (next_try, self._deadline) if each is not None), default=None)

    @property
    def _deadline(self) -> float | None:
        """When the session fails; None while no verifier owes it an answer."""
        since = self._unanswered_since
        return None if since is None else since + self.timing.session_timeout_s

    def take_tokens(self) -> list[Committed]:
        """The tokens committed since the last call."""
        new = self.stream.committed[self._num_taken :]
        self._num_taken += len(new)
        return new

    @property
    def next_send(self) -> Send | None:
        """The next message to send, if any, until `mark_sent`."""
        return self._outbox.oldest

    def mark_sent(self) -> None:
        self._outbox.mark_sent()

    # --- what happens ----------------------------------------------------------------------------------------------

    def on_timer(self, now: float) -> None:
        """Repeats unanswered messages, and gives up a verifier that is silent for too long."""
        if self.due is None or now < self.due:
            return
        if self._deadline is not None and now >= self._deadline:
            self._fail("overloaded", f"no verifier has answered for {self.timing.session_timeout_s:g} s")
        elif self.phase == "waiting":
            self._place(now)
        elif self.phase == "opening" and self._num_opens < self.timing.num_opens:
            self._open(now)
        elif self.phase == "opening" or self.stream.is_lost(now):
            self._leave_verifier(now)
        elif self._lacks_room and (verifier_id := self._verifier_with_room(now)) is not None:
            self._search.pause(now)
            self._bind(verifier_id, self._choose_drafter(verifier_id, now), now)
        elif (base := self.stream.on_timer(now)) is not None:
            self._ask(Poll(self.session_id, self.term, base), now)

    def on_opened(self, sender_id: str, opened: Opened, now: float) -> None:
        if self._is_current(sender_id, opened.term):
            if self.phase == "opening":  # one for each term, whatever a verifier says later
                self._fingerprint = opened.fingerprint
            self._lacks_room = not opened.has_room
            self._hear_verifier(now)

    def on_verdict(self, sender_id: str, verdict: Verdict, now: float) -> None:
        if not self._is_current(sender_id, verdict.term):
            return
        self._hear_verifier(now)
        try:
            new = self.stream.merge(verdict, now)
        except ConflictingVerdict:
            self.num_conflicts += 1
            self._leave_verifier(now)
            return
        before = self.tallies.observe(sender_id, verdict.term, verdict.tally)
        fates, counted_term, self._counted_term = further(verdict.tally, before), self._counted_term, verdict.term
        if self.drafter_id is not None and fates.total and counted_term == verdict.term:
            self.placement.guesses.observe(self.drafter_id, fates, now)
        if new:
            self._num_idle_terms, self._lacks_room, self._search = 0, False, RoomSearch()
            if self._fingerprint not in self._worked:
                self._worked.append(self._fingerprint)
        if self.stream.finish:
            self.phase = "over"
            self._load.count_at(now, self.verifier_id)  # until its Close; the drafter gets the finish by itself
        elif self.drafter_id is None:
            if self._drafter.is_search_due(now):
                self._change_drafter(now)
        elif verdict.echo is None:  # no draft has arrived in this term
            match self._drafter.reminder(now):
                case "repeat":
                    self._speculate(now)
                case "give up":
                    self._replace_drafter(now)

    def on_failure(self, sender_id: str, failure: Failure, now: float) -> None:
        if failure.term != self.term or self.phase == "over":
            return
        if sender_id == self.drafter_id:
            self._replace_drafter(now)
        elif sender_id == self.verifier_id:
            self._on_refusal(failure, now)

    def on_absent(self, service: Service, term: int, now: float) -> None:
        """The subject of this term's verifier or drafter has no subscriber: a hint that it is gone."""
        if term != self.term or self.phase not in ("opening", "running"):
            return
        if service == "drafter" and self.drafter_id is not None:
            self._replace_drafter(now)
        elif service == "verifier" and (self._num_absents == 0 or now >= self._retry_at):  # once per try
            self._num_absents += 1
            if self._num_absents >= NUM_ABSENTS:
                self._leave_verifier(now)
            else:
                self._retry_at = now + self.timing.absent_pause_s
                self.stream.ask_at(self._retry_at)

    def on_gone(self, instance_id: str, now: float) -> None:
        """The heartbeats of an instance have stopped."""
        if self.phase == "over":
            return
        if instance_id == self.drafter_id:
            self._replace_drafter(now, has_failed=False)
        elif instance_id == self.verifier_id and self.phase != "waiting":
            self._leave_verifier(now)

    def on_joined(self, instance_id: str, now: float) -> bool:
        """An instance has joined, perhaps again. A waiting session resumes at its own verifier at once, at another one
        with its next try: after an outage of the bus all verifiers join again, one after the other. Returns whether
        this changed more than whom the session avoids."""
        self._quarantine.release(instance_id)
        if self.phase != "waiting" or instance_id != self.verifier_id:
            return False
        self._place(now)
        return True

    def abort(self, reason: str) -> None:
        """Fails the session because the gateway stops."""
        if self.phase != "over":
            self._fail("draining", reason)

    def close(self, now: float, num_tokens: int | None = None) -> None:
        """Ends the session at every peer, since the answer is complete or its client has left. num_tokens: length of
        the text where that ends before the session's last token."""
        self.phase = "over"
        if num_tokens is not None:
            self.num_shown = num_tokens
        self._outbox.close(self.term)
        self._load.count_at(now)

    # --- verifier --------------------------------------------------------------------------------------------------

    def _place(self, now: float) -> None:
        """Opens the session at its own verifier if that is available, else at the best one; waits if there is none."""
        avoided = self._quarantine.avoided(now)
        verifier_id = self.placement.verifier(
            self.generation, now, avoided, self.fingerprints, self.verifier_id, self.stream.num_answered
        )
        if verifier_id is not None:
            self._num_idle_terms += 1
            if self._num_idle_terms > self.timing.max_idle_opens:
                self._fail("internal", f"{self.timing.max_idle_opens} openings in a row brought no token")
            else:
                self._bind(verifier_id, self._choose_drafter(verifier_id, now), now)
        elif self.was_opened or (self._refusal.code in PASSING if self._refusal else avoided):
            self.phase = "waiting"
            self._retry_at = now + self.timing.avoid_s
            self._begin_timeout(now)
            # A drafter that knows the session got no Close.
            self._load.count_at(now, self.drafter_id if self._load.knows(self.drafter_id) else None)
        else:
            self._fail_unplaced()

    def _verifier_with_room(self, now: float) -> str | None:
        """Another verifier that has KV cache for the session, if it is time to look for one."""
        if now < self._search.due:
            return None
        avoided = self._quarantine.avoided(now) | {str(self.verifier_id)}
        num_committed = self.stream.num_answered
        return self.placement.verifier_with_room(self.generation, now, avoided, self.fingerprints, num_committed)

    def _bind(self, verifier_id: str, drafter_id: str | None, now: float) -> None:
        """Begins a new term with this verifier and drafter."""
        self._outbox.leave(self.term, *({self.verifier_id, self.drafter_id} - {verifier_id, drafter_id}))
        if self.was_opened:
            self.num_failovers += verifier_id != self.verifier_id
            self.num_drafter_changes += drafter_id != self.drafter_id
        self._rebound = verifier_id == self.verifier_id and self.was_opened
        if verifier_id != self.verifier_id:
            self._fingerprint = self.placement.fingerprint(verifier_id, now)  # Opened may be lost
        self.verifier_id, self._drafter.drafter_id = verifier_id, drafter_id
        self._load.kv_tokens = self.generation.kv_tokens(self.stream.num_answered)
        self._load.count_at(now, verifier_id, drafter_id)
        self.term += 1
        self.bindings.append(Binding(self.term, verifier_id, drafter_id, now))
        self.stream.begin_term(self.term, now)
        self.phase, self._lacks_room = "opening", False
        self._num_opens = self._num_absents = 0
        self._open(now)

    def _open(self, now: float) -> None:
        self._num_opens += 1
        self._retry_at = now + self.timing.open_timeout_s
        message = self.generation.open(self.term, self.drafter_id, self.stream.answer_ids)
        self._ask(message, now)
        self._load.mark_known(self.verifier_id, now)

    def _ask(self, question: Open | Poll, now: float) -> None:
        self._begin_timeout(now)
        self._outbox.add("verifier", self.verifier_id, question)

    def _begin_timeout(self, now: float) -> None:
        """The session fails after its timeout unless a verifier answers. An earlier question counts."""
        if self._unanswered_since is None:
            self._unanswered_since = now

    def _is_current(self, sender_id: str, term: int) -> bool:
        return sender_id == self.verifier_id and term == self.term and self.phase != "over"

    def _hear_verifier(self, now: float) -> None:
        """The verifier of this term is alive and has the session."""
        self._unanswered_since, self._num_absents = None, 0
        if self.phase == "running":
            return
        came_back = self._rebound or self.phase == "waiting"
        self._load.count_at(now, self.verifier_id, self.drafter_id)
        self._load.mark_known(self.verifier_id, now)
        self.phase, self.was_opened = "running", True
        self.stream.begin_term(self.term, now, incomplete=came_back)
        self._drafter.begin_term()
        if self.drafter_id is not None:
            self._speculate(now)

    def _leave_verifier(self, now: float) -> None:
        """Moves the session to another verifier, or back to the same one later when there is no other."""
        if self.verifier_id is not None:
            self._quarantine.avoid(self.verifier_id, now + self.timing.avoid_s)
        self._place(now)

    def _on_refusal(self, failure: Failure, now: float) -> None:
        if failure.code in ANSWERS:
            self._unanswered_since = None
        if failure.code == "unknown_session" and self.was_opened:
            self._place(now)  # the verifier is alive and has lost the session
        elif failure.retryable or failure.code == "closed":  # closed by its lease, say: others may take the session
            self._refusal = failure
            if failure.code in PASSING:
                self._num_idle_terms = 0
            self._leave_verifier(now)
        else:
            self._fail(failure.code, failure.message)

    # --- drafter ---------------------------------------------------------------------------------------------------

    def _choose_drafter(self, verifier_id: str, now: float) -> str | None:
        return self._drafter.choose(verifier_id, self.stream.num_answered, now, was_opened=self.was_opened)

    def _speculate(self, now: float) -> None:
        assert self.verifier_id is not None
        self._drafter.on_speculate(now)
        message = self.generation.speculate(self.term, self.verifier_id, self.stream.answer_ids)
        self._outbox.add("drafter", self.drafter_id, message)
        self._load.mark_known(self.drafter_id, now)

    def _replace_drafter(self, now: float, *, has_failed: bool = True) -> None:
        self._drafter.give_up(now, has_failed=has_failed)
        self._change_drafter(now)

    def _change_drafter(self, now: float) -> None:
        """Binds the drafter to choose now; without one the verifier runs alone in the same term."""
        if self.verifier_id is None or self.phase == "waiting":
            return
        drafter_id = self._choose_drafter(self.verifier_id, now)
        if drafter_id is None:
            self._outbox.leave(self.term, self.drafter_id)
            self._drafter.drafter_id = None
            self._load.count_at(now, self.verifier_id)
        elif drafter_id != self.drafter_id:
            self._bind(self.verifier_id, drafter_id, now)

    # --- failures --------------------------------------------------------------------------------------------------

    def _fail_unplaced(self) -> None:
        """No verifier may take the session; the last refusal, if any, is the reason."""
        message = f"no verifier takes a session of {self.generation.model!r} with {self.generation.context} tokens now"
        if self._refusal is None:
            self._fail("overloaded", message)
        else:
            self._fail(self._refusal.code, f"{message}: {self._refusal.message}")

    def _fail(self, code: FailureCode, message: str) -> None:
        self.phase = "over"
        self.failure = SessionFailed(code, message)
