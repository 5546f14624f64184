"""The drafter's side of one session: a pure state machine (docs/protocol.md), no I/O and no clock.

Invariant: `tokens[:committed]` is a prefix of what the verifier has committed. The rest are at most `window` guesses,
and each guess ends in exactly one count: accepted, rejected, late or discarded.

Sliding window (go-back-N): drafting goes on while verdicts are in flight. Stop-and-wait is chunk = window. After an
unsure guess, drafting waits for its verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shared.protocol.guesses import MAX_EPOCH, Fates, common_prefix
from shared.protocol.messages import MAX_WINDOW, NO_TOKENS, Draft, Speculate, TokenIds, Verdict

MAX_SILENT_TRIES = 8
MIN_TIMEOUT_MS, MAX_TIMEOUT_MS = 20.0, 4000.0
LONGEST_MS = 60_000.0  # of a round trip and of a timeout, whatever a verifier says


@dataclass(slots=True)
class RoundTrip:
    """Smoothed round-trip time and its variation (RFC 6298), in milliseconds; None until the first sample."""

    mean_ms: float | None = None
    deviation_ms: float = 0.0

    def observe(self, sample_ms: float) -> None:
        sample_ms = min(max(0.0, sample_ms), LONGEST_MS)
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
    """One call of the draft model: it feeds `fed_ids` at `start`, start + 1, ...; if `draws`, its output is a guess."""

    start: int
    fed_ids: TokenIds
    draws: bool


@dataclass(slots=True)
class DrafterSession:
    """One session at its drafter. Times are milliseconds of the drafter's own clock."""

    session_id: str
    window: int
    chunk: int
    free_run: bool
    min_confidence: float = 0.0
    term: int = -1
    tokens: list[int] = field(default_factory=list)
    committed: int = 0  # tokens that the verifier has committed
    computed: int = 0  # KV entries that hold `tokens[:computed]`
    sent: int = 0  # in this epoch guesses before this position were sent
    epoch: int = 0
    closed: bool = False
    was_heard: bool = False  # in this term a verdict has come
    drafted: int = 0
    fates: Fates = field(default_factory=Fates)
    round_trip: RoundTrip = field(default_factory=RoundTrip)
    _speculate: Speculate | None = None
    _step: DraftStep | None = None
    _confidence: float = 1.0  # of the newest guess: nothing is drafted after an unsure one, so it is the last token
    _valid: int = 0  # positions below were not rolled back since the step in flight began
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
        """The text length at which drafting ends."""
        return len(self.request.prompt_ids) + self.request.max_tokens

    @property
    def num_guesses(self) -> int:
        """Guesses without a verdict."""
        return len(self.tokens) - self.committed

    def rebind(self, request: Speculate, now: float) -> None:
        """Takes a Speculate of a higher term.

        The KV cache keeps the common prefix of both texts. The measured times are kept if the verifier stays the same.
        Raises ValueError for a term that is not higher.
        """
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
        self.was_heard = False
        self.closed = self.committed >= self.limit
        self._tries, self._quiet_since = 0, now
        self._poll_due, self._polled_at = True, -1

    def steer(self, window: int, chunk: int, free_run: bool, min_confidence: float = 0.0) -> None:
        """Takes a new window. Guesses beyond a smaller window stay; none is added until their number is below it."""
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
        """Whether the last guess ends the window because its confidence is below the threshold."""
        return self.num_guesses > 0 and self._confidence < self.min_confidence

    @property
    def wants_step(self) -> bool:
        return self.can_draft and self._step is None

    @property
    def num_todo(self) -> int:
        """Tokens to feed for the next guess; the last token is fed again for its logits."""
        return len(self.tokens) - min(self.computed, len(self.tokens) - 1)

    def begin_step(self, max_tokens: int) -> DraftStep:
        """The next call of the draft model, with at most `max_tokens` fed tokens: catching up takes several steps.

        Raises RuntimeError if the session wants no step.
        """
        if not self.wants_step:
            raise RuntimeError(f"session {self.session_id} needs no draft step")
        start = len(self.tokens) - self.num_todo
        fed = TokenIds(self.tokens[start : start + max_tokens])
        self._step = DraftStep(start, fed, start + len(fed) == len(self.tokens))
        self._valid = len(self.tokens)
        return self._step

    def end_step(self, step: DraftStep, guess: int, confidence: float = 1.0, forced: Sequence[int] = ()) -> bool:
        """Applies a finished step; returns whether its guess was added.

        A guess for an outdated text is dropped: the text was rolled back or grew since the step began. The KV cache
        keeps what it holds of the valid text. confidence: the draft's own probability of the guess. forced: the only
        tokens that may follow it, which are added as far as the window has room.
        """
        self._step = None
        end = step.start + len(step.fed_ids)
        self.computed = min(end, self._valid)
        if not step.draws or end != len(self.tokens) or self._valid < end or not self.can_draft:
            return False
        room = min(self.window - self.num_guesses, self.limit - len(self.tokens))
        added = [guess, *forced][:room]
        self.tokens.extend(added)
        self._confidence = confidence
        self.drafted += len(added)
        return True

    # --- send ------------------------------------------------------------------------------------------------------

    def take_draft(self, now: float) -> Draft | None:
        """The next Draft that is due: a poll, a full chunk, or a shorter chunk if no more can be drafted. Else None.

        At the length limit the last Draft lets the verifier run free, and the session closes.
        """
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
        """When to resend unless a verdict comes first; None if no verdict is expected."""
        if self.closed or (self.sent <= self.committed and not self.free_run):
            return None
        timeout = self._timeout_ms
        return self._quiet_since + min(timeout * 2.0**self._tries, max(timeout, MAX_TIMEOUT_MS))

    def on_timer(self, now: float) -> Draft | None:
        """Resends from the committed length if due. After MAX_SILENT_TRIES without a verdict the session closes."""
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
        """How long an answer may take: the round trip, the running pass and the next one."""
        return min(max(MIN_TIMEOUT_MS, self.round_trip.timeout_ms + 2 * self._pass_ms), LONGEST_MS)

    def _draft(self, base: int, ids: TokenIds, now: float) -> Draft:
        return Draft(self.session_id, self.term, self.epoch, base, ids, self.free_run, now)

    # --- commit ----------------------------------------------------------------------------------------------------

    def on_verdict(self, verdict: Verdict, now: float) -> bool:
        """Takes committed tokens. Returns False, and changes nothing, for another term or a closed session."""
        if verdict.term != self.term or self.closed:
            return False
        self._hear(verdict, now)
        if verdict.base > self.committed:
            self._poll_for_gap(now)
            return True
        fixed = self.tokens[verdict.base : self.committed][: len(verdict.token_ids)]
        if list(verdict.token_ids[: len(fixed)]) != fixed:
            self.close()  # the verifier contradicts its own committed tokens
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
        """Ends drafting; guesses without a verdict are discarded."""
        self.fates.discarded += self.num_guesses
        self._roll_back(self.committed)
        del self.tokens[self.committed :]
        self.closed = True

    def take_over(self, num_tokens: int) -> None:
        """Takes note that the KV cache gets `tokens[:num_tokens]` from elsewhere before the next step."""
        self.computed = max(self.computed, num_tokens)

    def drop_cache(self, length: int = 0) -> None:
        """Takes note that the KV cache is lost from `length` on: the text behind is fed again."""
        self._roll_back(length)

    def _hear(self, verdict: Verdict, now: float) -> None:
        self.was_heard = True
        self._tries, self._quiet_since = 0, now
        self._pass_ms = verdict.compute_ms
        if verdict.echo:
            self.round_trip.observe(now - verdict.echo.sent_ms - verdict.echo.hold_ms)

    def _poll_for_gap(self, now: float) -> None:
        """Polls once for each committed length, and again after a timeout.

        The timer of `on_timer` can't do that: verdicts that arrive above the gap restart it.
        """
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
        """Drops the KV cache from `length` on, also for the step in flight."""
        self.computed = min(self.computed, length)
        self._valid = min(self._valid, length)
