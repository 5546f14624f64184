"""What a grammar allows after a text that grows and is rolled back.

Invariant: the answer depends on the grammar and the text alone, not on the way on which the text was reached.

Where the grammar forces the next bytes, their tokens as the tokenizer writes them are the only ones allowed: llguidance
calls them fast-forward tokens. Stop ids are allowed where the text satisfies the grammar.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.grammar.grammars import BadGrammar, Grammars, Started

MAX_FORCED = 32  # tokens that are found at once


class Obeying(Protocol):
    """A request, as far as a grammar goes."""

    @property
    def grammar(self) -> str | None: ...

    @property
    def stop_ids(self) -> Sequence[int]: ...


def rule_of(request: Obeying, grammars: Grammars, vocab_size: int) -> RunningGrammar | None:
    """What a request's answer obeys, at its beginning; None: nothing. Raises BadGrammar."""
    if request.grammar is None:
        return None
    return RunningGrammar(grammars.start(request.grammar), request.stop_ids, vocab_size)


class RunningGrammar:
    """Follows the answer of one request, from its beginning on. vocab_size: of the masks."""

    def __init__(self, started: Started, stop_ids: Sequence[int], vocab_size: int) -> None:
        self._matcher = started.matcher
        self._end_ids = list(started.end_ids)
        self._stop_ids = list(stop_ids)
        self._vocab_size = vocab_size
        self._num_valid = 0  # leading tokens that the matcher has consumed
        self._length = 0

    @property
    def length(self) -> int:
        """Tokens of the answer so far."""
        return self._length

    def extend(self, token_ids: Sequence[int]) -> None:
        """Appends tokens. What the grammar does not allow, and all after it, is only counted."""
        if self._num_valid == self._length:
            self._num_valid += self._matcher.try_consume_tokens(list(token_ids))
        self._length += len(token_ids)

    def roll_back(self, length: int) -> None:
        """Keeps the first `length` tokens."""
        if length < self._num_valid:
            self._matcher.rollback(self._num_valid - length)
            self._num_valid = length
        self._length = min(self._length, length)

    @property
    def allowed(self) -> NDArray[np.bool_] | None:
        """Mask [vocab] of the next token; None after a text that the grammar does not allow, or that has ended.

        Raises BadGrammar for one that exceeds the library's limits here.
        """
        self._check()
        if self._num_valid < self._length:
            return None
        mask = np.zeros(self._vocab_size, np.bool_)
        if (forced := self._next_forced()) is not None:
            mask[forced] = True
            return mask
        matcher = self._matcher
        if not matcher.is_stopped():
            bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            mask[:] = np.unpackbits(bits, count=self._vocab_size, bitorder="little")
            mask[self._end_ids] = False
            self._check()
        if matcher.is_accepting():
            mask[self._stop_ids] = True
        return mask

    def forced(self) -> list[int]:
        """The next tokens as far as each is the only one allowed; the text stays as it is."""
        found: list[int] = []
        if self._num_valid < self._length:
            return found
        while len(found) < MAX_FORCED and (forced := self._next_forced()) is not None:
            if not self._matcher.try_consume_tokens([forced]):
                break
            found.append(forced)
        self._matcher.rollback(len(found))
        return found

    def _check(self) -> None:
        if self._matcher.is_error():
            raise BadGrammar(self._matcher.get_error())

    def _next_forced(self) -> int | None:
        if self._matcher.is_stopped() or self._matcher.is_accepting():
            return None
        forced = self._matcher.compute_ff_tokens()
        return forced[0] if forced else None
