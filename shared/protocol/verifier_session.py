"""The verifier's side of one session: a pure state machine (docs/protocol.md), no I/O and no clock.

Invariant: `tokens` grows only by the target's own draws, each drawn after exactly the tokens before it. Guesses are
compared and nothing else: what a drafter sends changes how many tokens a pass commits, never which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf

from shared.protocol.guess_queue import GuessQueue
from shared.protocol.guesses import common_prefix
from shared.protocol.kept_logprobs import MAX_TOLD_WITH_LOGPROBS, KeptLogprobs
from shared.protocol.lookup import OwnGuesses
from shared.protocol.messages import (
    MAX_TOKENS,
    NO_TOKENS,
    Draft,
    Echo,
    Finish,
    Open,
    Poll,
    Tally,
    TokenIds,
    TokenLogprobs,
    Verdict,
)
from shared.protocol.pass_row import NO_PASS, PassInfo, PassRow
from shared.protocol.retelling import Retelling

# Waiting for guesses that one accepted guess makes up for (docs/protocol.md, rule 13).
EARNED_MS = 500.0
# A draft is older than one with a later send time only if it comes less than this after it.
OVERTAKING_MS = 1000.0
# Fields of Open that a context keeps
DRAW_FIELDS = ("sampling", "stop_ids", "min_tokens", "logprobs", "cache_scope", "grammar", "prompt_logprobs")


@dataclass(slots=True)
class VerifierSession:
    """One session at its verifier. Times are milliseconds of one monotonic clock."""

    session_id: str
    gateway_id: str
    opened_at: float
    term: int = -1
    drafter_id: str | None = None
    tokens: list[int] = field(default_factory=list)  # prompt and committed tokens
    logprobs: KeptLogprobs = field(default_factory=KeptLogprobs)  # of the newest tokens, or of all but the first
    computed: int = 0  # KV entries that hold `tokens[:computed]`
    finish: Finish | None = None
    guesses: GuessQueue = field(default_factory=GuessQueue)
    num_passes: int = 0
    info: PassInfo = NO_PASS
    own_guesses: OwnGuesses = field(default_factory=OwnGuesses)
    _retelling: Retelling = field(default_factory=Retelling)
    _open: Open | None = None
    _free_run: bool = True  # as the newest draft says
    _waits_since: float | None = None  # for guesses; None: it does not wait
    _waited_ms: float = 0.0  # for guesses, less what accepted ones made up for
    _most_waited_ms: float = inf  # the drafter's lease; from then on the session runs free, whatever drafts say
    _row: PassRow | None = None
    _echo_at: float = 0.0
    _sent_ms: float | None = None  # of the newest draft, received at _echo_at

    @classmethod
    def opened(cls, request: Open, gateway_id: str, now: float) -> VerifierSession:
        """A new session for an Open."""
        session = cls(request.session_id, gateway_id, now)
        session.rebind(request, now)
        return session

    @property
    def request(self) -> Open:
        assert self._open is not None
        return self._open

    @property
    def length(self) -> int:
        """Committed tokens, the prompt included."""
        return len(self.tokens)

    @property
    def limit(self) -> int:
        """The length at which max_tokens is reached."""
        return len(self.request.prompt_ids) + self.request.max_tokens

    @property
    def reach(self) -> int:
        """The length that the next pass can commit: with all guesses and a bonus token."""
        return min(self.limit, self.length + len(self.guesses.pending) + len(self.own_guesses.ready.token_ids) + 1)

    @property
    def num_todo(self) -> int:
        """Committed tokens that the KV cache does not hold yet; 1 while the session decodes."""
        return self.length - self.computed

    @property
    def draws(self) -> bool:
        """Whether the next pass may draw: the session runs free, has a guess to verify, or has text to compute, whose
        last token yields a draw at no cost. The first pass always may."""
        is_free = self._free_run or self._waited_ms >= self._most_waited_ms or self.drafter_id is None
        return is_free or bool(self.guesses.pending) or not self._decodes

    @property
    def _decodes(self) -> bool:
        """Whether a pass would compute the newest token and guesses alone."""
        return self.num_todo <= 1 and self.num_passes > 0

    @property
    def ready(self) -> bool:
        """Whether the session has work for a pass."""
        return not self.finish and self._row is None and self.draws

    @property
    def tally(self) -> Tally:
        fates = self.guesses.fates
        num_passes, looked_up = self.num_passes, self.own_guesses.fates.accepted
        return Tally(fates.accepted, fates.rejected, fates.late, fates.discarded, num_passes, looked_up)

    # --- gateway ---------------------------------------------------------------------------------------------------

    def rebind(self, request: Open, now: float) -> bool:
        """Takes an Open of a higher term; raises ValueError for another. Returns whether the text goes on as before.

        A text that continues the gateway's is kept: it is the target's own. Any other is replaced by the gateway's, and
        `computed` falls to the common prefix. A draw that is asked for in another way ends the old context too.
        """
        if request.term <= self.term:
            raise ValueError(f"term {request.term} does not follow {self.term}")
        theirs = [*request.prompt_ids, *request.committed_ids]
        common = common_prefix(self.tokens, theirs)
        old = self._open
        continues = old is not None and common == len(theirs) and request.prompt_ids == old.prompt_ids
        is_same = continues and all(getattr(request, name) == getattr(old, name) for name in DRAW_FIELDS)
        self.term, self.drafter_id, self._open = request.term, request.drafter_id, request
        self._free_run = request.free_run
        self._sent_ms = None
        if not continues:
            self._void_row()
            self.own_guesses.forget_text()
            self.tokens, self.logprobs = theirs, KeptLogprobs()
            self.computed = min(self.computed, common, max(0, len(theirs) - 1))
        self.guesses.restart(self.length)
        self.own_guesses.take(0)
        self.finish = self._finish_of(self.tokens[len(request.prompt_ids) :])
        self._count_wait(now)
        return is_same

    def on_poll(self, poll: Poll, now: float) -> Verdict | None:
        """A verdict of all committed tokens from poll.base on; None for another term."""
        return self.verdict_from(poll.base, now) if poll.term == self.term else None

    def verdict_from(self, base: int, now: float) -> Verdict:
        """A verdict of all committed tokens from `base` on; of prompt tokens, those that have logprobs."""
        if self.request.prompt_logprobs and base < self.length:
            return self._verdict(max(1, min(base, 1 + len(self.logprobs))), 0, now)
        return self._verdict(self._clipped(base), 0, now)

    def _clipped(self, base: int) -> int:
        """`base`, moved into the answer."""
        return max(len(self.request.prompt_ids), min(base, self.length))

    # --- drafter ---------------------------------------------------------------------------------------------------

    def on_draft(self, draft: Draft, now: float) -> Verdict | None:
        """Takes guesses; returns the verdict that must answer at once, if any (docs/protocol.md, "On Draft")."""
        if draft.term != self.term:
            return None
        self._hear(draft, now)
        must_answer = self._take_guesses(draft)
        self._count_wait(now)
        return self._answer(draft.base, now) if must_answer else None

    def _take_guesses(self, draft: Draft) -> bool:
        """Returns whether the draft must be answered."""
        if self.finish:
            self.guesses.discard(len(draft.token_ids))
            return True
        return self.guesses.receive(draft, self.tokens, self.limit)

    def _answer(self, base: int, now: float) -> Verdict | None:
        """A verdict of committed tokens from `base` on, as many as may be told; None if none of them may."""
        base = self._clipped(base)
        wanted = self.length - base
        num = self._retelling.take(wanted, now)
        return self._verdict(base, 0, now, num) if num or not wanted else None

    def expire_drafter(self, now: float, lease_ms: float) -> bool:
        """Lets the session run free if it has waited for guesses for `lease_ms` in all; returns whether that is new.

        Nothing that the drafter sends renews its lease, and no new term does. Each accepted guess takes EARNED_MS off.
        """
        self._most_waited_ms = lease_ms
        waited = self._waits_since is not None
        self._count_wait(now)
        return waited and self._waits_since is None

    def _count_wait(self, now: float) -> None:
        """Call it after any change that may begin or end a wait for guesses."""
        if self._waits_since is not None:
            self._waited_ms += now - self._waits_since
        waits = not self.finish and self._row is None and not self.draws
        self._waits_since = now if waits else None

    def _hear(self, draft: Draft, now: float) -> None:
        is_newest = self._sent_ms is None or draft.sent_ms >= self._sent_ms
        if is_newest or now - self._echo_at >= OVERTAKING_MS:
            self._sent_ms, self._echo_at = draft.sent_ms, now
            self._free_run = draft.free_run

    # --- passes ----------------------------------------------------------------------------------------------------

    def look_up(self, most: int) -> None:
        """Makes guesses of its own for the next pass, as many as make `most` with the drafter's."""
        if self.request.lookup:
            self.own_guesses.look_up(self.tokens, self.guesses.pending, most, self.request.stop_ids)

    @property
    def chances(self) -> list[float]:
        """Of each guess, that it and all before it are accepted."""
        probability, num = self.guesses.survival.probability, len(self.guesses.pending)
        of_drafter = [probability ** (k + 1) for k in range(num)]
        return of_drafter + self.own_guesses.chances.survival(self.own_guesses.ready, probability**num)

    def begin_pass(self, max_tokens: int, max_guesses: int) -> PassRow:
        """Freezes the session's share of the next pass: at most `max_tokens` fed tokens and `max_guesses` guesses.

        Raises RuntimeError if the session is not ready or max_tokens is below 1.
        """
        if not self.ready or max_tokens < 1:
            raise RuntimeError(f"session {self.session_id} can't join a pass with {max_tokens} tokens")
        todo, start = self.num_todo, self.computed
        if todo > max_tokens:
            fed = TokenIds(self.tokens[start : start + max_tokens])
            scored = self._scored_ids(start, max_tokens)
            row = PassRow(start, fed, 0, self.length, NO_TOKENS, self.term, self.guesses.epoch, scored)
            self.own_guesses.take(0)
        else:
            row = self._decoding_row(todo, min(max_guesses, max_tokens - todo))
        self._row = row
        return row

    def _decoding_row(self, todo: int, max_guesses: int) -> PassRow:
        base = self.length
        num = len(self.guesses.pending) + len(self.own_guesses.ready.token_ids)
        num_fed = max(0, min(max_guesses, num, self.limit - base - 1))
        guesses = self.guesses.take(num_fed + 1, base)
        looked_up = self.own_guesses.take(num_fed + 1 - len(guesses))
        fed = TokenIds([*self.tokens[base - todo :], *[*guesses, *looked_up.token_ids][:num_fed]])
        scored = self._scored_ids(self.computed, todo - 1)
        return PassRow(self.computed, fed, num_fed + 1, base, guesses, self.term, self.guesses.epoch, scored, looked_up)

    def _scored_ids(self, start: int, num: int) -> TokenIds:
        """The text behind each of `num` tokens from `start` on, if its logprobs are asked for and missing."""
        if not self.request.prompt_logprobs or start + num <= len(self.logprobs):
            return NO_TOKENS
        return TokenIds(self.tokens[start + 1 : start + 1 + num])

    def end_pass(
        self,
        row: PassRow,
        draws: Sequence[int],
        info: PassInfo,
        now: float,
        logprobs: Sequence[TokenLogprobs] = (),
        computed: int | None = None,
        forced: Sequence[int] = (),
        scored: Sequence[TokenLogprobs] = (),
    ) -> Verdict | None:
        """Commits the draws of a row. Returns None without draws, or for a row that was voided meanwhile.

        draws: token ids, none if the pass did not reach the end of the text. Guesses after equal draws are offered
        again. logprobs: of the draws up to the first wrong guess, or empty. computed: KV entries after a pass without
        draws (default: all that was fed). forced: the only tokens that may follow the committed draws. scored: logprobs
        of the row's scored_ids.
        """
        if row is not self._row:
            return None
        self._row = None
        self.logprobs.follow(row.start, scored)
        self.info = info
        matched = common_prefix([*row.guesses, *row.looked_up.token_ids], draws)
        if matched == len(draws) < len(row.guesses):
            row = self._offer_again(row, matched)
        if not draws:
            self.own_guesses.judge(row.looked_up, 0, 0)
            self.computed = row.start + len(row.fed_ids) if computed is None else computed
            return None
        committed = self._cut(draws[: matched + 1])
        right = min(matched, len(committed))
        accepted = min(right, len(row.guesses))
        self.own_guesses.judge(row.looked_up, right - accepted, len(committed) - len(row.guesses))
        self.guesses.judge(row.base, len(row.guesses), accepted, len(committed))
        self.tokens.extend(committed)
        self.logprobs.extend(logprobs[: len(committed)])
        self.computed = row.base + min(right, len(draws) - 1, len(committed) - 1)
        self.finish = self._finish_of(committed)
        if forced and not self.finish:
            self.tokens.extend(cut := self._cut(forced))
            self.finish = self._finish_of(cut)
        self.num_passes += 1
        self._waited_ms = max(0.0, self._waited_ms - accepted * EARNED_MS)
        self._settle(row, accepted)
        self._count_wait(now)
        return self._verdict(row.base, accepted, now, looked_up=right - accepted)

    def drop_cache(self) -> None:
        """Takes note that the KV cache is lost: all committed tokens are computed again. A pass in flight is void."""
        self.computed = 0
        if self._row is not None:
            self.abandon_pass(self._row)

    def abandon_pass(self, row: PassRow) -> bool:
        """Drops a row whose pass failed, with its guesses. Returns False if the row was void before."""
        if row is not self._row:
            return False
        self._void_row()
        self.guesses.raise_epoch(self.length)
        return True

    def close(self) -> None:
        """Ends the session: a pass in flight is void, and guesses without a fate are discarded."""
        self._void_row()
        self.guesses.clear(self.length)

    def _offer_again(self, row: PassRow, num_drawn: int) -> PassRow:
        """Puts back the guesses that the pass had no draw for. Returns the row without them."""
        rest = row.guesses[num_drawn:]
        if self._is_current(row):
            self.guesses.put_back(rest, row.base + num_drawn)
        else:
            self.guesses.discard(len(rest))
        return replace(row, guesses=TokenIds(row.guesses[:num_drawn]))

    def _void_row(self) -> None:
        """Makes sure that nothing of the pass in flight is committed."""
        if self._row is not None:
            self.guesses.discard(len(self._row.guesses))
            self.own_guesses.judge(self._row.looked_up, 0, 0)
            self._row = None

    def _cut(self, draws: Sequence[int]) -> list[int]:
        """`draws` up to and including the first stop id, within max_tokens."""
        draws = list(draws[: self.limit - self.length])
        stop = next((i for i, token in enumerate(draws) if token in self.request.stop_ids), len(draws))
        return draws[: stop + 1]

    def _finish_of(self, newest: Sequence[int]) -> Finish | None:
        if newest and newest[-1] in self.request.stop_ids:
            return "stop"
        return "length" if self.length >= self.limit else None

    def _settle(self, row: PassRow, accepted: int) -> None:
        """Compares the guesses that arrived during the pass with what it committed."""
        if self.finish:
            self.guesses.clear(self.length)
        elif accepted < len(row.guesses) and self._is_current(row):
            self.guesses.raise_epoch(self.length)
        else:
            self.guesses.settle(self.tokens)

    def _is_current(self, row: PassRow) -> bool:
        """Whether the guesses of a row are of the present term and epoch."""
        return (row.term, row.epoch) == (self.term, self.guesses.epoch)

    def _verdict(self, base: int, accepted: int, now: float, most: int = MAX_TOKENS, *, looked_up: int = 0) -> Verdict:
        """A verdict of at most `most` tokens from `base` on."""
        echo = None if self._sent_ms is None else Echo(self._sent_ms, max(0.0, now - self._echo_at))
        end, logprobs = min(self.length, base + most), None
        if self.request.logprobs is not None:
            first = 1 if self.request.prompt_logprobs else self.length - len(self.logprobs)
            end = max(base, min(end, base + MAX_TOLD_WITH_LOGPROBS, first + len(self.logprobs)))
            logprobs = self.logprobs[max(0, base - first) : max(0, end - first)]
        return Verdict(
            session_id=self.session_id,
            term=self.term,
            epoch=self.guesses.epoch,
            base=base,
            token_ids=TokenIds(self.tokens[base:end]),
            accepted=accepted,
            finish=self.finish if end == self.length else None,
            echo=echo,
            compute_ms=self.info.compute_ms,
            batch=self.info.batch,
            queue=self.info.queue,
            tally=self.tally,
            logprobs=logprobs,
            pass_tokens=self.info.num_tokens,
            looked_up=looked_up,
        )
