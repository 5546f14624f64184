"""One answer as it grows: merges a verifier's verdicts by position, and decides when to poll.

Invariant: `tokens` only grows, by tokens that a verdict of the current term has at exactly the next position. Verdicts
may be lost, repeated, reordered or of another term: no token is skipped and none comes twice. No I/O and no clock:
every call gets `now`, in seconds of any one clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from msgspec.structs import astuple

from services.gateway.session.timeouts import PollTiming
from shared.protocol.kept_logprobs import MAX_TOLD_WITH_LOGPROBS
from shared.protocol.messages import MAX_WINDOW, NO_TOKENS, Finish, Tally, TokenIds, TokenLogprobs, Verdict

# What a token came from: an accepted guess, a right guess of the verifier's own (lookup), the target's own token at a
# rejection (recovered) or behind right guesses (bonus), else the target alone. Repeated tokens count as the target's,
# since their source is unknown.
TokenSource: TypeAlias = Literal["accepted", "lookup", "recovered", "bonus", "target"]


class ConflictingVerdict(ValueError):
    """A verdict contradicts the tokens so far, or the session's own bounds."""


@dataclass(frozen=True, slots=True)
class Committed:
    """One token of the answer. logprobs None: not requested."""

    token_id: int
    source: TokenSource
    logprobs: TokenLogprobs | None


@dataclass(slots=True)
class Growth:
    """Tokens that came without an interruption of the session: the term, and when the first and the newest came."""

    term: int
    first_at: float
    newest_at: float


@dataclass(slots=True)
class VerdictStream:
    """The committed tokens of one session behind its prompt, as the gateway knows them. Those of its prompt that have
    logprobs come before them."""

    prompt_length: int
    max_tokens: int
    timing: PollTiming
    wants_logprobs: bool = False
    scored_ids: TokenIds = NO_TOKENS  # the end of the prompt
    term: int = 0
    tokens: list[int] = field(default_factory=list)
    committed: list[Committed] = field(default_factory=list)  # the same with sources and logprobs
    finish: Finish | None = None
    histogram: list[int] = field(default_factory=list)  # verdicts that judged guesses, by the number they accepted
    num_polls: int = 0  # in all terms
    growth: list[Growth] = field(default_factory=list)  # one for each term that brought tokens, or more
    _unanswered: int = 0
    _gap: bool = False  # a verdict began beyond `length`: tokens are missing
    _heard_at: float = 0.0
    _asked_at: float | None = None
    _grew_at: float | None = None
    _num_rejected: int = 0  # in the newest tally of this term
    _usual_gap_s: float | None = None  # moving average of the time between verdicts that brought tokens

    @property
    def length(self) -> int:
        """The next position, counted from the start of the prompt."""
        return self._begin + len(self.tokens)

    @property
    def num_answered(self) -> int:
        """Tokens of the answer."""
        return max(0, len(self.tokens) - len(self.scored_ids))

    @property
    def answer_ids(self) -> TokenIds:
        return TokenIds(self.tokens[len(self.scored_ids) :])

    @property
    def _begin(self) -> int:
        """Position of the first token."""
        return self.prompt_length - len(self.scored_ids)

    @property
    def silence_s(self) -> float:
        """Silence after which the verifier is polled, seconds."""
        usual = (self._usual_gap_s or 0.0) * self.timing.num_gaps
        return min(self.timing.max_silence_s, max(self.timing.min_silence_s, usual))

    @property
    def due(self) -> float | None:
        """When to call `on_timer`; None once finished."""
        if self.finish:
            return None
        silent_at = self._heard_at if self._gap else self._heard_at + self.silence_s
        return silent_at if self._asked_at is None else max(silent_at, self._asked_at + self.timing.answer_s)

    def begin_term(self, term: int, now: float, *, incomplete: bool = False) -> None:
        """Takes verdicts of this term only from now on. incomplete: the verifier may have committed more tokens in an
        older term, so it is polled at once."""
        self.term = term
        self._unanswered, self._asked_at, self._grew_at = 0, None, None
        self._gap, self._heard_at = incomplete, now
        self._num_rejected = 0

    def on_timer(self, now: float) -> int | None:
        """The position to poll from, if a Poll is due."""
        if self.due is None or now < self.due or self.is_lost(now):
            return None
        self._asked_at = now
        self._unanswered += 1
        self.num_polls += 1
        return self.length

    def ask_at(self, when: float) -> None:
        """Makes the next Poll due at `when`: the verifier was absent for the last one."""
        self._asked_at = when - self.timing.answer_s

    def is_lost(self, now: float) -> bool:
        """Whether `max_polls` Polls went unanswered: the verifier is gone."""
        return self._unanswered >= self.timing.max_polls and self.due is not None and now >= self.due

    def merge(self, verdict: Verdict, now: float) -> list[Committed]:
        """The tokens that the verdict adds, perhaps none. Raises ConflictingVerdict, and then changes nothing."""
        if verdict.term != self.term or self.finish:
            return []
        self._check(verdict)
        self._heard_at, self._unanswered = now, 0
        if verdict.base > self.length:
            self._gap = True
            return []
        new = self._added(verdict)
        if new:
            self._observe_gap(now)
            self._count(verdict)
        self.committed.extend(new)
        self.tokens.extend(each.token_id for each in new)
        self._num_rejected = max(self._num_rejected, verdict.tally.rejected)
        if new or verdict.base + len(verdict.token_ids) == self.length:
            is_cut = self.wants_logprobs and len(verdict.token_ids) == MAX_TOLD_WITH_LOGPROBS
            self._gap, self._asked_at = is_cut, None
        self.finish = verdict.finish
        return new

    def _added(self, verdict: Verdict) -> list[Committed]:
        """The tokens of the verdict behind `length`, each with its source."""
        first = self.length - verdict.base
        new = verdict.token_ids[first:]
        logprobs: list[TokenLogprobs] | list[None] = [None] * len(new)
        if self.wants_logprobs and new:
            logprobs = (verdict.logprobs or [])[-len(new) :]
        guessed = verdict.accepted + verdict.looked_up
        own: TokenSource = "bonus" if guessed else "target"
        if verdict.tally.rejected > self._num_rejected:
            own = "recovered"
        return [
            Committed(token_id, "accepted" if i < verdict.accepted else "lookup" if i < guessed else own, each)
            for i, token_id, each in zip(range(first, first + len(new)), new, logprobs, strict=True)
        ]

    def _check(self, verdict: Verdict) -> None:
        start, end = verdict.base - self._begin, verdict.base + len(verdict.token_ids)
        if start < 0 or end > self.prompt_length + self.max_tokens:
            raise ConflictingVerdict(f"positions {verdict.base} to {end} are outside the answer")
        known = self.tokens[start : start + len(verdict.token_ids)]
        prompt_ids = self.scored_ids[start : start + len(verdict.token_ids)]
        if list(verdict.token_ids[: len(known)]) != known or verdict.token_ids[: len(prompt_ids)] != prompt_ids:
            raise ConflictingVerdict(f"tokens from position {verdict.base} on differ from those already committed")
        is_gap = verdict.base > self.length  # its tokens are not used
        if self.wants_logprobs and not is_gap and end - self.length > len(verdict.logprobs or ()):
            raise ConflictingVerdict(f"tokens up to position {end} have no logprobs")
        if verdict.finish and end < self.length:
            raise ConflictingVerdict(f"finished at position {end}, but {self.length} are already committed")

    def _count(self, verdict: Verdict) -> None:
        """Counts what the pass accepted. What only a Poll told is not counted: its passes are unknown."""
        num = min(verdict.accepted, len(verdict.token_ids), MAX_WINDOW)
        if num or verdict.tally.rejected > self._num_rejected:
            self.histogram += [0] * (num + 1 - len(self.histogram))
            self.histogram[num] += 1

    def _observe_gap(self, now: float) -> None:
        if self._grew_at is not None:
            gap = now - self._grew_at
            self._usual_gap_s = gap if self._usual_gap_s is None else 0.8 * self._usual_gap_s + 0.2 * gap
            self.growth[-1].newest_at = now
        else:
            self.growth.append(Growth(self.term, now, now))
        self._grew_at = now


@dataclass(slots=True)
class TallySum:
    """Fates of one session's guesses, summed over all verifiers that served it.

    A verifier counts from its first Open of the session. So its newer tally replaces its older one, unless the newer
    one is smaller: then the verifier has lost the session and counts from zero.
    """

    _closed: list[Tally] = field(default_factory=list)
    _newest: dict[str, tuple[int, Tally]] = field(default_factory=dict)  # verifier id -> term, tally

    def observe(self, verifier_id: str, term: int, tally: Tally) -> Tally:
        """Takes a tally. Returns the one beyond which it counts: itself if it tells nothing new."""
        known_term, known = self._newest.get(verifier_id, (term, Tally()))
        if sum(astuple(tally)) < sum(astuple(known)):
            if term <= known_term:
                return tally
            self._closed.append(known)
            known = Tally()
        self._newest[verifier_id] = (term, tally)
        return known

    @property
    def total(self) -> Tally:
        tallies = [*self._closed, *(tally for _, tally in self._newest.values())]
        return Tally(*map(sum, zip(*map(astuple, tallies), strict=True)))
