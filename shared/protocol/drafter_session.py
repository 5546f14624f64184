"""The drafter's side of one session: a pure state machine (docs/protocol.md), no I/O and no clock.

Invariant: `tokens[:committed]` is a prefix of what the verifier has fixed; everything behind is a guess of its own, at
most `window` of them, and each guess ends in exactly one count: accepted, rejected, late or discarded.

Sliding window (go-back-N): drafting goes on while verdicts are in flight. Stop-and-wait is chunk = window. Behind a
guess of too little confidence drafting waits until that guess has a verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.protocol.messages import MAX_WINDOW, NO_TOKENS, Draft, Speculate, TokenIds, Verdict
from shared.protocol.verifier_session import MAX_EPOCH, Fates, common_prefix

MAX_SILENT_TRIES = 8
MIN_TIMEOUT_MS, MAX_TIMEOUT_MS = 20.0, 4000.0


@dataclass(slots=True)
class RoundTrip:
    """Smoothed round-trip time and its variation (RFC 6298), in milliseconds; None until the first sample."""

    mean_ms: float | None = None
    deviation_ms: float = 0.0

    def observe(self, sample_ms: float) -> None:
        sample_ms = max(0.0, sample_ms)
        if self.mean_ms is None:
            self.mean_ms, self.deviation_ms = sample_ms, sample_ms / 2
            return
        self.deviation_ms += (abs(sample_ms - self.mean_ms) - self.deviation_ms) / 4
        self.mean_ms += (sample_ms - self.mean_ms) / 8

    @property
    def timeout_ms(self) -> float:
        return 1000.0 if self.mean_ms is None else self.mean_ms + 4 * self.deviation_ms


@dataclass(frozen=True, slots=True, eq=False)
class DraftStep:
    """One call of the draft model: feed `fed_ids` at `start`, ...; its output is a guess only if `draws`."""

    start: int
    fed_ids: TokenIds
    draws: bool


@dataclass(slots=True)
class DrafterSession:
    """One session as its drafter sees it. Times are in milliseconds of the drafter's own clock."""

    session_id: str
    window: int
    chunk: int
    free_run: bool
    min_confidence: float = 0.0
    term: int = -1
    tokens: list[int] = field(default_factory=list)
    committed: int = 0  # tokens that the verifier has fixed
    computed: int = 0  # KV entries that hold `tokens[:computed]`
    sent: int = 0  # guesses before this position were sent in this epoch
    epoch: int = 0
    closed: bool = False
    drafted: int = 0
    fates: Fates = field(default_factory=Fates)
    round_trip: RoundTrip = field(default_factory=RoundTrip)
    _speculate: Speculate | None = None
    _step: DraftStep | None = None
    _confidence: float = 1.0  # of the newest guess: behind an unsure one nothing is drafted, so it is the last token
    _valid: int = 0  # positions below it were not rolled back since the step in flight began
    _poll_due: bool = False
    _polled_at: int = -1  # committed length of the last poll for a gap
    _polled_ms: float = 0.0  # when that was
    _quiet_since: float = 0.0
    _tries: int = 0
    _pass_ms: float = 0.0

    @classmethod
    def started(cls, request: Speculate, window: int, chunk: int, free_run: bool, now: float) -> DrafterSession:
        """A new session for a Speculate."""
        session = cls(request.session_id, window, chunk, free_run)
        session.rebind(request, now)
        return session

    @property
    def request(self) -> Speculate:
        assert self._speculate is not None
        return self._speculate

    @property
    def limit(self) -> int:
        """The length behind which nothing is drafted."""
        return len(self.request.prompt_ids) + self.request.max_tokens

    @property
    def num_guesses(self) -> int:
        """Own tokens without a verdict."""
        return len(self.tokens) - self.committed

    def rebind(self, request: Speculate, now: float) -> None:
        """Takes a Speculate of a higher term; of the KV cache, what holds the common part of both texts is kept. Times
        measured of the verifier are kept only where it stays the same."""
        if request.term <= self.term:
            raise ValueError(f"term {request.term} does not follow {self.term}")
        theirs = [*request.prompt_ids, *request.committed_ids]
        self.fates.discarded += self.num_guesses
        if self._speculate is not None and self._speculate.verifier_id != request.verifier_id:
            self.round_trip, self._pass_ms = RoundTrip(), 0.0
        self.term, self._speculate = request.term, request
        self._roll_back(common_prefix(self.tokens, theirs))
        self.tokens = theirs
        self.committed = self.sent = len(theirs)
        self.epoch = 0
        self.closed = self.committed >= self.limit
        self._tries, self._quiet_since = 0, now
        self._poll_due, self._polled_at = True, -1

    def steer(self, window: int, chunk: int, free_run: bool, min_confidence: float = 0.0) -> None:
        """Takes a new window; guesses beyond a smaller one stay, but none is added until they are fewer."""
        self.window = max(0, min(window, MAX_WINDOW))
        self.chunk = max(1, min(chunk, max(1, self.window)))
        self.free_run = free_run or self.window == 0
        self.min_confidence = min_confidence

    # --- draft -----------------------------------------------------------------------------------------------------

    @property
    def can_draft(self) -> bool:
        """Whether the window has room for one more guess."""
        if self.closed or self.num_guesses >= self.window or len(self.tokens) >= self.limit or self.is_unsure:
            return False
        return not (self.num_guesses and self.tokens[-1] in self.request.stop_ids)

    @property
    def is_unsure(self) -> bool:
        """Whether the window ends at the last guess, for want of confidence in it."""
        return self.num_guesses > 0 and self._confidence < self.min_confidence

    @property
    def wants_step(self) -> bool:
        return self.can_draft and self._step is None

    def begin_step(self, max_tokens: int) -> DraftStep:
        """The next call of the draft model, at most `max_tokens` fed (catching up comes in several steps).

        Raises RuntimeError when there is nothing to do.
        """
        if not self.wants_step:
            raise RuntimeError(f"session {self.session_id} wants no draft step")
        start = min(self.computed, len(self.tokens) - 1)  # the last token is fed again where its logits are wanted
        fed = TokenIds(self.tokens[start : start + max_tokens])
        self._step = DraftStep(start, fed, start + len(fed) == len(self.tokens))
        self._valid = len(self.tokens)
        return self._step

    def end_step(self, step: DraftStep, guess: int, confidence: float = 1.0) -> bool:
        """Applies a finished step. A guess drawn before a rollback, or behind what the verifier said since, is thrown
        away (False); what the cache holds of the valid text is kept. `confidence`: the draft's own probability of the
        guess."""
        self._step = None
        end = step.start + len(step.fed_ids)
        self.computed = min(end, self._valid)
        if not step.draws or end != len(self.tokens) or self._valid < end or not self.can_draft:
            return False
        self.tokens.append(guess)
        self._confidence = confidence
        self.drafted += 1
        return True

    # --- send ------------------------------------------------------------------------------------------------------

    def take_draft(self, now: float) -> Draft | None:
        """The next Draft to send, if one is due: a poll, a full chunk, or all there is when no more can be drafted.
        Where the answer goes on behind the limit, a last one lets the verifier go on alone, and the session closes."""
        if self.closed:
            return None
        if self.committed >= self.limit:
            self.free_run = True
            self.close()
            return self._draft(self.committed, NO_TOKENS, now)
        if self._poll_due:
            self._poll_due = False
            return self._draft(self.committed, NO_TOKENS, now)
        unsent = len(self.tokens) - self.sent
        if unsent <= 0 or (unsent < self.chunk and self.can_draft):
            return None
        base = self.sent
        ids = TokenIds(self.tokens[base : base + MAX_WINDOW])
        if base == self.committed:
            self._quiet_since = now
        self.sent = base + len(ids)
        return self._draft(base, ids, now)

    @property
    def resend_at(self) -> float | None:
        """When to resend unless a verdict comes first; None when no verdict is owed."""
        if self.closed or (self.sent <= self.committed and not self.free_run):
            return None
        timeout = self._timeout_ms
        return self._quiet_since + min(timeout * 2.0**self._tries, max(timeout, MAX_TIMEOUT_MS))

    def on_timer(self, now: float) -> Draft | None:
        """Resends from the committed length when due; after MAX_SILENT_TRIES without a verdict the session closes."""
        due = self.resend_at
        if due is None or now < due:
            return None
        if self._tries == MAX_SILENT_TRIES:
            self.close()
            return None
        self._tries += 1
        self._quiet_since = now
        return self._draft(self.committed, TokenIds(self.tokens[self.committed : self.sent]), now)

    @property
    def _timeout_ms(self) -> float:
        """What an answer may take: the round trip, the pass under way, and its own."""
        return max(MIN_TIMEOUT_MS, self.round_trip.timeout_ms + 2 * self._pass_ms)

    def _draft(self, base: int, ids: TokenIds, now: float) -> Draft:
        return Draft(self.session_id, self.term, self.epoch, base, ids, self.free_run, now)

    # --- commit ----------------------------------------------------------------------------------------------------

    def on_verdict(self, verdict: Verdict, now: float) -> bool:
        """Takes what the verifier has fixed; False when it is of another term, or of a session already closed."""
        if verdict.term != self.term or self.closed:
            return False
        self._hear(verdict, now)
        if verdict.base > self.committed:
            self._poll_for_gap(now)
            return True
        fixed = self.tokens[verdict.base : self.committed][: len(verdict.token_ids)]
        if list(verdict.token_ids[: len(fixed)]) != fixed:
            self.close()  # this verifier takes back what it has fixed: nothing to be followed
            return True
        rewound = verdict.epoch > self.epoch
        self._commit(verdict)
        if rewound:
            self.epoch = max(self.epoch, verdict.epoch)
            self.sent = self.committed
        if verdict.finish:
            self.close()
        return True

    def close(self) -> None:
        """No more drafting; open guesses are discarded."""
        self.fates.discarded += self.num_guesses
        self._roll_back(self.committed)
        del self.tokens[self.committed :]
        self.closed = True

    def drop_cache(self) -> None:
        """The KV cache is gone; the whole text will be fed again."""
        self._roll_back(0)

    def _hear(self, verdict: Verdict, now: float) -> None:
        self._tries, self._quiet_since = 0, now
        self._pass_ms = verdict.compute_ms
        if verdict.echo:
            self.round_trip.observe(now - verdict.echo.sent_ms - verdict.echo.hold_ms)

    def _poll_for_gap(self, now: float) -> None:
        """One poll from a committed length, and another once that one or its answer must be lost: verdicts that go on
        arriving above the gap put off every resend."""
        if self._polled_at != self.committed or now >= self._polled_ms + self._timeout_ms:
            self._poll_due, self._polled_at, self._polled_ms = True, self.committed, now

    def _commit(self, verdict: Verdict) -> None:
        ids, base = verdict.token_ids, verdict.base
        end = base + len(ids)
        equal = base + common_prefix(self.tokens[base:end], ids)
        self._count(verdict, equal, end)
        if equal < min(end, len(self.tokens)):
            self._roll_back(equal)
            del self.tokens[equal:]
            self.epoch = min(self.epoch + 1, MAX_EPOCH)
            self.sent = end
        self.tokens.extend(ids[max(0, len(self.tokens) - base) :])
        self.committed = max(self.committed, end)
        self.sent = max(self.sent, self.committed)

    def _count(self, verdict: Verdict, equal: int, end: int) -> None:
        in_time = max(0, min(equal, verdict.base + verdict.accepted) - self.committed)
        self.fates.accepted += in_time
        self.fates.late += max(0, equal - self.committed) - in_time
        if equal < min(end, len(self.tokens)):
            self.fates.rejected += equal >= self.committed
            self.fates.discarded += len(self.tokens) - max(equal + 1, self.committed)

    def _roll_back(self, length: int) -> None:
        """Forgets the KV cache behind `length` tokens, also for the step in flight."""
        self.computed = min(self.computed, length)
        self._valid = min(self._valid, length)
