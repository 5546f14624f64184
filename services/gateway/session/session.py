"""One session in the gateway's hands: a pure state machine (docs/protocol.md, "Gateway"), no I/O and no clock.

Invariant: the answer's tokens are those of one VerdictStream, so none is lost or told twice whoever comes and goes;
every change of verifier or drafter raises the term, and every instance that was ever bound gets a Close in the end.

opening -(Opened)-> running -(verifier lost)-> opening elsewhere, or waiting where nobody is left -> over
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from services.gateway.errors import SessionFailed
from services.gateway.session.generation import Generation
from services.gateway.session.placement import Placement
from services.gateway.session.timeouts import SessionTiming
from services.gateway.session.verdict_stream import Committed, ConflictingVerdict, TallySum, VerdictStream
from shared.protocol.messages import (
    Close,
    Failure,
    FailureCode,
    Open,
    Opened,
    Poll,
    Service,
    Speculate,
    TokenIds,
    Verdict,
)

Phase = Literal["opening", "running", "waiting", "over"]

PASSING: tuple[FailureCode, ...] = ("overloaded", "draining")  # refusals that are waited out
NUM_ABSENTS = 2  # nobody at a verifier's subject: a hint, believed when repeated
MIN_TOKENS_FOR_DRAFTER = 4  # fewer tokens to come are not worth a change of drafter


@dataclass(frozen=True, slots=True)
class Send:
    """A message to be sent to one instance."""

    service: Service
    instance_id: str
    verb: str
    message: Open | Speculate | Poll | Close


@dataclass(slots=True)
class Incidents:
    """What happened to a session on its way, for metrics and logs."""

    failovers: int = 0  # changes of verifier after the first Opened
    drafter_changes: int = 0
    conflicts: int = 0


@dataclass(slots=True)
class Session:
    """One generation: opened, speculated for, followed, moved when a peer is lost, closed."""

    generation: Generation
    placement: Placement
    timing: SessionTiming
    stream: VerdictStream
    tallies: TallySum = field(default_factory=TallySum)
    incidents: Incidents = field(default_factory=Incidents)
    phase: Phase = "opening"
    term: int = 0
    verifier_id: str | None = None
    drafter_id: str | None = None
    was_opened: bool = False
    failure: SessionFailed | None = None
    _outbox: list[Send] = field(default_factory=list)
    _taken: int = 0  # tokens handed on
    _bound: dict[str, Service] = field(default_factory=dict)  # everybody who may know this session
    _placed: dict[str, bool] = field(default_factory=dict)  # at whom the fleet counts it; whether they were told
    _avoided: dict[str, float] = field(default_factory=dict)  # instance id -> until when
    _refusal: Failure | None = None
    _alive_at: float = 0.0
    _retry_at: float = 0.0
    _num_tries: int = 0  # Opens of this term
    _num_absents: int = 0
    _idle_opens: int = 0
    _adopt_at: float = 0.0
    _speculated_at: float = 0.0
    _num_speculates: int = 0
    _rebound: bool = False  # this term's verifier had the session before
    _fingerprint: str = ""  # of this term's verifier
    _worked: list[str] = field(default_factory=list)  # fingerprints whose tokens the answer has, in order
    _num_told: int | None = None  # tokens of a text that ended before its session

    @classmethod
    def started(cls, generation: Generation, placement: Placement, timing: SessionTiming, now: float) -> Session:
        """A session that has chosen its verifier and asked it; or one that failed at once."""
        stream = VerdictStream(
            len(generation.prompt_ids), generation.max_tokens, timing.poll, generation.num_top is not None
        )
        session = cls(generation, placement, timing, stream, _alive_at=now)
        session._place(now)
        return session

    # --- what the owner asks ---------------------------------------------------------------------------------------

    @property
    def session_id(self) -> str:
        return self.generation.session_id

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer so far; none behind the end of its text."""
        return len(self.stream.tokens) if self._num_told is None else self._num_told

    @property
    def fingerprints(self) -> list[str]:
        """Numerics of the verifiers whose tokens the answer has, by their first; before any, of the one at hand."""
        return self._worked or [self._fingerprint]

    @property
    def due(self) -> float | None:
        """When `on_timer` must be called unless something happens before."""
        if self.phase == "over":
            return None
        stream_due = self.stream.due if self.phase == "running" else self._retry_at
        deadline = self._alive_at + self.timing.session_timeout_s
        return deadline if stream_due is None else min(stream_due, deadline)

    def take_tokens(self) -> list[Committed]:
        """The tokens committed since the last call."""
        new = self.stream.committed[self._taken :]
        self._taken += len(new)
        return new

    def take_sends(self) -> list[Send]:
        """The messages to send since the last call."""
        sends, self._outbox = self._outbox, []
        return sends

    # --- what happens ----------------------------------------------------------------------------------------------

    def on_timer(self, now: float) -> None:
        """Repeats what went unanswered, and gives up who is silent for too long."""
        if self.due is None or now < self.due:
            return
        if now >= self._alive_at + self.timing.session_timeout_s:
            self._fail("overloaded", f"no verifier has answered for {self.timing.session_timeout_s:g} s")
        elif self.phase == "waiting":
            self._place(now)
        elif self.phase == "opening":
            self._repeat_open(now)
        elif self.stream.is_lost(now):
            self._leave_verifier(now)
        elif (base := self.stream.on_timer(now)) is not None:
            self._say("verifier", self.verifier_id, "poll", Poll(self.session_id, self.term, base))

    def on_opened(self, sender_id: str, opened: Opened, now: float) -> None:
        if self._is_current(sender_id, opened.term):
            self._fingerprint = opened.fingerprint
            self._hear_verifier(now)

    def on_verdict(self, sender_id: str, verdict: Verdict, now: float) -> None:
        if not self._is_current(sender_id, verdict.term):
            return
        self._hear_verifier(now)
        try:
            new = self.stream.merge(verdict, now)
        except ConflictingVerdict:
            self.incidents.conflicts += 1
            self._leave_verifier(now)
            return
        self.tallies.observe(sender_id, verdict.term, verdict.tally)
        if new:
            self._idle_opens = 0
            if self._fingerprint not in self._worked:
                self._worked.append(self._fingerprint)
        if self.stream.finish:
            self.phase = "over"
            self._count_at(now, self.verifier_id)  # which has it until it is closed; the drafter has heard the end, too
        elif self.drafter_id is None:
            self._adopt_drafter(now)
        elif verdict.echo is None:
            self._remind_drafter(now)

    def on_failure(self, sender_id: str, failure: Failure, now: float) -> None:
        if failure.term != self.term or self.phase == "over":
            return
        if sender_id == self.drafter_id:
            self._avoided[sender_id] = now + self.timing.avoid_drafter_s
            self._change_drafter(now)
        elif sender_id == self.verifier_id:
            self._on_refusal(failure, now)

    def on_absent(self, service: Service, term: int, now: float) -> None:
        """Nobody listened where this term's verifier or drafter should: a hint that it is gone."""
        if term != self.term or self.phase not in ("opening", "running"):
            return
        if service == "drafter" and self.drafter_id is not None:
            self.on_gone(self.drafter_id, now)
        elif service == "verifier" and (self._num_absents == 0 or now >= self._retry_at):  # once per try
            self._num_absents += 1
            if self._num_absents >= NUM_ABSENTS:
                self._leave_verifier(now)
            else:
                self._retry_at = now + self.timing.absent_pause_s
                self.stream.ask_at(self._retry_at)

    def on_gone(self, instance_id: str, now: float) -> None:
        """An instance is known to be gone (its heartbeats stopped)."""
        if self.phase == "over":
            return
        if instance_id == self.drafter_id:
            self._avoided[instance_id] = now + self.timing.avoid_drafter_s
            self._change_drafter(now)
        elif instance_id == self.verifier_id and self.phase != "waiting":
            self._leave_verifier(now)

    def on_joined(self, instance_id: str, now: float) -> None:
        """A peer has come, or come back. A session that waits goes on with its own verifier at once, with another at
        its next try: after an outage of the bus all come back, one after the other."""
        self._avoided.pop(instance_id, None)
        if self.phase == "waiting" and instance_id == self.verifier_id:
            self._place(now)

    def abort(self, reason: str) -> None:
        """The gateway itself must stop."""
        if self.phase != "over":
            self._fail("draining", reason)

    def close(self, now: float, num_tokens: int | None = None) -> None:
        """The answer is complete, with its first `num_tokens` tokens where they are given, or nobody wants it any more:
        tells everybody who may know the session."""
        self.phase = "over"
        if num_tokens is not None:
            self._num_told = num_tokens
        for instance_id, service in self._bound.items():
            self._say(service, instance_id, "close", Close(self.session_id, self.term))
        self._bound.clear()
        self._count_at(now)

    # --- verifier --------------------------------------------------------------------------------------------------

    def _is_current(self, sender_id: str, term: int) -> bool:
        return sender_id == self.verifier_id and term == self.term and self.phase != "over"

    def _hear_verifier(self, now: float) -> None:
        """The verifier of this term is alive and has the session."""
        self._alive_at, self._num_absents = now, 0
        if self.phase == "running":
            return
        came_back = self._rebound or self.phase == "waiting"
        self._count_at(now, self.verifier_id, self.drafter_id)
        self._count_told(now, self.verifier_id)
        self.phase, self.was_opened = "running", True
        self.stream.begin_term(self.term, now, incomplete=came_back)
        self._num_speculates = 0
        if self.drafter_id is not None:
            self._speculate(now)

    def _place(self, now: float) -> None:
        """Opens the session at the verifier that has it, if that is back, else at the best there is."""
        avoided = {instance_id for instance_id, until in self._avoided.items() if now < until}
        verifier_id = self.placement.verifier(self.generation, now, avoided, self.fingerprints, self.verifier_id)
        if verifier_id is not None:
            self._idle_opens += 1
            if self._idle_opens > self.timing.max_idle_opens:
                self._fail("internal", f"{self.timing.max_idle_opens} openings in a row brought no token")
            else:
                self._bind(verifier_id, self._choose_drafter(verifier_id, now), now)
        elif self.was_opened or (self._refusal.code in PASSING if self._refusal else avoided):
            self.phase = "waiting"
            self._retry_at = now + self.timing.avoid_s
            was_told = self.drafter_id is not None and self._placed.get(self.drafter_id, False)
            self._count_at(now, self.drafter_id if was_told else None)  # nobody has told it to leave
        else:
            self._fail_unplaced()

    def _fail_unplaced(self) -> None:
        message = f"no verifier takes a session of {self.generation.model!r} with {self.generation.context} tokens now"
        if self._refusal is None:
            self._fail("overloaded", message)
        else:
            self._fail(self._refusal.code, f"{message}: {self._refusal.message}")

    def _bind(self, verifier_id: str, drafter_id: str | None, now: float) -> None:
        """Begins a new term with this verifier and drafter."""
        self._leave(*({self.verifier_id, self.drafter_id} - {verifier_id, drafter_id}))
        if self.was_opened:
            self.incidents.failovers += verifier_id != self.verifier_id
            self.incidents.drafter_changes += drafter_id != self.drafter_id
        self._rebound = verifier_id == self.verifier_id and self.was_opened
        if verifier_id != self.verifier_id:
            self._fingerprint = self.placement.fingerprint(verifier_id, now)  # Opened may be lost
        self.verifier_id, self.drafter_id = verifier_id, drafter_id
        self._count_at(now, verifier_id, drafter_id)
        self._bound[verifier_id] = "verifier"
        self.term += 1
        self.stream.begin_term(self.term, now)
        self.phase, self._num_tries, self._num_absents = "opening", 0, 0
        self._open(now)

    def _open(self, now: float) -> None:
        self._num_tries += 1
        self._retry_at = now + self.timing.open_timeout_s
        order = self.generation.open(self.term, self.drafter_id, TokenIds(self.stream.tokens))
        self._say("verifier", self.verifier_id, "open", order)
        self._count_told(now, self.verifier_id)

    def _repeat_open(self, now: float) -> None:
        if self._num_tries >= self.timing.num_opens:
            self._leave_verifier(now)
        else:
            self._open(now)

    def _leave_verifier(self, now: float) -> None:
        """Goes on elsewhere, or with the same one later when there is no other."""
        if self.verifier_id is not None:
            self._avoided[self.verifier_id] = now + self.timing.avoid_s
        self._place(now)

    def _on_refusal(self, failure: Failure, now: float) -> None:
        if failure.code == "unknown_session" and self.was_opened:
            self._place(now)  # it lives, but lost the session
        elif failure.retryable or failure.code == "closed":  # closed by its lease, say: others may still take it
            self._refusal = failure
            if failure.code in PASSING:  # nothing is wrong with this session
                self._idle_opens = 0
            if failure.code == "overloaded":  # and the verifier lives: to be waited for until the request's deadline
                self._alive_at = now
            self._leave_verifier(now)
        else:
            self._fail(failure.code, failure.message, retryable=False)

    # --- drafter ---------------------------------------------------------------------------------------------------

    def _choose_drafter(self, verifier_id: str, now: float) -> str | None:
        """The drafter at hand while it is alive, else the best there is."""
        avoided = {instance_id for instance_id, until in self._avoided.items() if now < until}
        if self.drafter_id and self.drafter_id not in avoided and self.placement.fleet.is_alive(self.drafter_id, now):
            return self.drafter_id
        num_left = self.generation.max_tokens - len(self.stream.tokens)
        if self.was_opened and num_left < MIN_TOKENS_FOR_DRAFTER:
            return None
        return self.placement.drafter(self.generation, verifier_id, num_left, now, avoided)

    def _change_drafter(self, now: float) -> None:
        """Binds another drafter; without one the verifier simply goes on alone."""
        if self.verifier_id is None or self.phase == "waiting":
            return
        drafter_id = self._choose_drafter(self.verifier_id, now)
        if drafter_id is not None and drafter_id != self.drafter_id:
            self._bind(self.verifier_id, drafter_id, now)
        elif drafter_id is None:
            self._leave(self.drafter_id)
            self.drafter_id = None
            self._count_at(now, self.verifier_id)

    def _adopt_drafter(self, now: float) -> None:
        """A session that runs alone looks for a drafter now and then."""
        if now >= self._adopt_at:
            self._adopt_at = now + self.timing.adopt_s
            self._change_drafter(now)

    def _speculate(self, now: float) -> None:
        assert self.verifier_id is not None
        assert self.drafter_id is not None
        self._bound[self.drafter_id] = "drafter"
        self._speculated_at = now
        self._num_speculates += 1
        order = self.generation.speculate(self.term, self.verifier_id, TokenIds(self.stream.tokens))
        self._say("drafter", self.drafter_id, "speculate", order)
        self._count_told(now, self.drafter_id)

    def _remind_drafter(self, now: float) -> None:
        """No draft of this term has reached the verifier yet: the Speculate may be lost, or the drafter in trouble."""
        if self.drafter_id is None or self._num_speculates == 0:
            return
        patience = self.timing.speculate_retry_s * 2 ** (self._num_speculates - 1)
        if now - self._speculated_at < patience:
            return
        if self._num_speculates < self.timing.num_speculates:
            self._speculate(now)
        else:
            self._avoided[self.drafter_id] = now + self.timing.avoid_drafter_s
            self._change_drafter(now)

    # --- ends ------------------------------------------------------------------------------------------------------

    def _leave(self, *instance_ids: str | None) -> None:
        """Tells peers that they are out; they are told once more in the end, should this be lost."""
        for instance_id in instance_ids:
            if instance_id is not None and instance_id in self._bound:
                self._say(self._bound[instance_id], instance_id, "close", Close(self.session_id, self.term))

    def _count_at(self, now: float, *instance_ids: str | None) -> None:
        """From now on it is a session of these, and of nobody else."""
        placed = {instance_id for instance_id in instance_ids if instance_id is not None}
        for instance_id in placed - self._placed.keys():
            self._placed[instance_id] = False
            self.placement.fleet.count_sessions(instance_id, 1, None)
        for instance_id in self._placed.keys() - placed:
            was_told = self._placed.pop(instance_id)
            self.placement.fleet.count_sessions(instance_id, -1, now if was_told else None)

    def _count_told(self, now: float, instance_id: str | None) -> None:
        """One at whom it counts hears of it: so its heartbeats will."""
        if instance_id is not None and self._placed.get(instance_id) is False:
            self._placed[instance_id] = True
            self.placement.fleet.count_sessions(instance_id, -1, None)
            self.placement.fleet.count_sessions(instance_id, 1, now)

    def _fail(self, code: FailureCode, message: str, *, retryable: bool = True) -> None:
        self.phase = "over"
        self.failure = SessionFailed(code, message, retryable=retryable)

    def _say(
        self, service: Service, instance_id: str | None, verb: str, message: Open | Speculate | Poll | Close
    ) -> None:
        assert instance_id is not None
        self._outbox.append(Send(service, instance_id, verb, message))
