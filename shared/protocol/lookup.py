"""Guesses that a verifier makes itself, by prompt lookup: what followed where the text occurred before.

Summaries, edits and answers about a text repeat parts of it, and many answers repeat themselves. The method is that of
vLLM's n-gram speculation, with matches of any length as in SuffixDecoding (arXiv 2411.04975). Pure, no I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from shared.protocol.guesses import Fates
from shared.protocol.messages import NO_TOKENS, TokenIds

LEAST_MATCH = 2  # equal tokens before a guess
LONGEST_MATCH = 9  # longer ones are taken as alike
MOST_COMPARED = 8  # earlier occurrences of the last two tokens, newest first
MOST_FOLLOWED = 4096  # tokens added at once: a long prompt does not delay a pass


@dataclass(frozen=True, slots=True)
class LookedUp:
    """Guesses in a row. match: equal tokens before the first, 0 without guesses."""

    token_ids: TokenIds = NO_TOKENS
    match: int = 0

    def first(self, num: int) -> LookedUp:
        """The first `num` of them."""
        if num <= 0 or not self.token_ids:
            return NOTHING
        return self if num >= len(self.token_ids) else LookedUp(TokenIds(self.token_ids[:num]), self.match)


NOTHING = LookedUp()


@dataclass(slots=True)
class TextLookup:
    """Where in one text each pair of tokens occurred. The text may only grow."""

    _newest: dict[tuple[int, int], int] = field(default_factory=dict)  # pair -> the position after it
    _earlier: list[int] = field(default_factory=lambda: [0, 0])  # position -> that after the pair's occurrence before

    def follow(self, text: Sequence[int]) -> None:
        """Adds what is new of the text, at most MOST_FOLLOWED tokens of it."""
        start = len(self._earlier)
        for i in range(start, min(len(text), start + MOST_FOLLOWED)):
            pair = (text[i - 2], text[i - 1])
            self._earlier.append(self._newest.get(pair, 0))
            self._newest[pair] = i

    def find(self, text: Sequence[int], pending: Sequence[int], most: int, stop_ids: Collection[int]) -> LookedUp:
        """At most `most` guesses for the positions behind `text` and `pending`, the guesses that it has already; none
        behind a stop id."""
        tail = [*text[-LONGEST_MATCH:], *pending][-LONGEST_MATCH:]
        if most < 1 or len(tail) < LEAST_MATCH or tail[-1] in stop_ids:
            return NOTHING
        place, longest = 0, LEAST_MATCH - 1
        i = self._newest.get((tail[-2], tail[-1]), 0)
        for _ in range(MOST_COMPARED):
            if not i or longest == LONGEST_MATCH:
                break
            if (match := _match(text, i, tail)) > longest:
                place, longest = i, match
            i = self._earlier[i]
        if not place:
            return NOTHING
        found: list[int] = []
        behind = len(text) + len(pending)
        for i in range(place, place + most):
            found.append(text[i] if i < len(text) else pending[i - len(text)] if i < behind else found[i - behind])
            if found[-1] in stop_ids:
                break
        return LookedUp(TokenIds(found), longest)


def _match(text: Sequence[int], end: int, tail: Sequence[int]) -> int:
    """How many tokens before `end` are those at the end of `tail`."""
    most = min(end, len(tail))
    return next((k for k in range(most) if text[end - 1 - k] != tail[-1 - k]), most)


class LookupChances:
    """How often a session's guesses by lookup are right, by the length of their match.

    Beta estimates: old guesses fade, and before there are any the prior holds.
    """

    PRIOR = (0.0, 0.0, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)  # by match
    PRIOR_WEIGHT = 8.0  # guesses
    MEMORY = 64.0

    def __init__(self) -> None:
        self._right = [rate * self.PRIOR_WEIGHT for rate in self.PRIOR]
        self._seen = [self.PRIOR_WEIGHT] * len(self.PRIOR)

    def survival(self, found: LookedUp, before: float) -> list[float]:
        """The probability of each guess that it is right and all before it, if that of those in front is `before`."""
        chances = []
        for k in range(len(found.token_ids)):
            match = min(found.match + k, LONGEST_MATCH)
            before *= self._right[match] / self._seen[match]
            chances.append(before)
        return chances

    def observe(self, match: int, num_right: int, *, is_wrong: bool) -> None:
        """Takes `num_right` right guesses in a row behind a match, followed by a wrong one if `is_wrong`."""
        keep = 1 - 1 / self.MEMORY
        for k in range(num_right + is_wrong):
            place = min(match + k, LONGEST_MATCH)
            self._right[place] = self._right[place] * keep + (k < num_right)
            self._seen[place] = self._seen[place] * keep + 1


@dataclass(slots=True)
class OwnGuesses:
    """The guesses that one session's verifier makes itself. They come behind those of its drafter."""

    ready: LookedUp = NOTHING  # for the next pass
    fates: Fates = field(default_factory=Fates)  # never late
    chances: LookupChances = field(default_factory=LookupChances)
    _text: TextLookup = field(default_factory=TextLookup)

    def forget_text(self) -> None:
        self.ready, self._text = NOTHING, TextLookup()

    def look_up(self, text: Sequence[int], pending: Sequence[int], most: int, stop_ids: Collection[int]) -> None:
        """Makes guesses for the next pass, as many as make `most` with the pending ones of the drafter."""
        self._text.follow(text)
        self.ready = self._text.find(text, pending, most - len(pending), stop_ids)

    def take(self, num: int) -> LookedUp:
        """The first `num` guesses, for a pass."""
        taken, self.ready = self.ready.first(num), NOTHING
        return taken

    def judge(self, taken: LookedUp, num_right: int, num_committed: int) -> None:
        """num_committed: tokens of the pass at their positions."""
        num_judged = max(0, min(len(taken.token_ids), num_committed))
        self.fates.accepted += num_right
        self.fates.rejected += num_judged - num_right
        self.fates.discarded += len(taken.token_ids) - num_judged
        self.chances.observe(taken.match, num_right, is_wrong=num_judged > num_right)
