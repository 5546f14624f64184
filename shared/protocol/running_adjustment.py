"""The `adjustment` of shared/protocol/sampling.py for a text that grows and is rolled back.

Invariant: `current` has the numbers that `adjustment` computes from the whole text, bit for bit, in another order of
tokens. A change of the text costs as much as the tokens that come or go, however long the text is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.protocol.messages import Open, Sampling, Speculate
from shared.protocol.sampling import Adjustment, History, adjustment, is_adjusted, is_penalised

MIN_SPARE = 16  # entries that an enlarged table has to spare


class AnswerRule(Protocol):
    """Which tokens may follow an answer that grows and is rolled back, such as a grammar's (shared/grammar)."""

    @property
    def allowed(self) -> NDArray[np.bool_] | None:
        """Mask [vocab] of the next token, with at least one token; None: there is none that is right."""

    def forced(self) -> list[int]:
        """The next tokens as far as each is the only one allowed."""

    def extend(self, token_ids: Sequence[int]) -> None: ...

    def roll_back(self, length: int) -> None:
        """Keeps the first `length` tokens of the answer."""


class AnyAnswer:
    """Allows every token."""

    allowed = None

    def forced(self) -> list[int]:
        return []

    def extend(self, token_ids: Sequence[int]) -> None:
        """Nothing depends on the answer."""

    def roll_back(self, length: int) -> None:
        """Nothing depends on the answer."""


class RunningAdjustment:
    """Follows the text of one request, from its prompt on. rule: the tokens that it allows keep their scores.

    Entries of prompt, biases and stop ids come first and stay. Those of other output tokens follow in the order of
    their first occurrence, so the text's last token is also the owner of the last entry if no other occurrence is left.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: Sequence[int],
        stop_ids: Sequence[int] = (),
        min_tokens: int = 0,
        rule: AnswerRule | None = None,
    ) -> None:
        self.rule = rule or AnyAnswer()
        self._sampling = sampling
        self._is_penalised = is_penalised(sampling)
        self._num_prompt = len(prompt_ids)
        self._min_tokens = min_tokens
        self._output_ids: list[int] = []
        self._first = adjustment(sampling, History(prompt_ids, (), stop_ids, min_tokens))
        self._table = Adjustment._make(column.copy() for column in self._first)  # the entries, and room for more
        self._entries = {token_id: entry for entry, token_id in enumerate(self._first.token_ids.tolist())}
        self._counts = [0] * len(self._entries)  # occurrences in the output
        biases = {each.token_id: each.bias for each in sampling.logit_bias}
        stops = stop_ids if min_tokens else ()
        self._stop_entries = [self._entries[token_id] for token_id in stops]
        self._late_biases = [biases.get(token_id, 0.0) for token_id in stops]  # from min_tokens tokens on

    @classmethod
    def of(cls, request: Open | Speculate, rule: AnswerRule | None = None) -> RunningAdjustment | None:
        """At the end of the prompt; None if no score ever differs from its logit."""
        if rule is None and not is_adjusted(request.sampling, request.min_tokens):
            return None
        return cls(request.sampling, request.prompt_ids, request.stop_ids, request.min_tokens, rule)

    @property
    def length(self) -> int:
        """Tokens of the text: the prompt, and the output so far."""
        return self._num_prompt + len(self._output_ids)

    @property
    def output_ids(self) -> Sequence[int]:
        return self._output_ids

    @property
    def current(self) -> Adjustment:
        """For the token after the text; valid until the text changes."""
        is_early = len(self._output_ids) < self._min_tokens
        self._table.bias[self._stop_entries] = -np.inf if is_early else self._late_biases
        return Adjustment._make(column[: len(self._entries)] for column in self._table)

    def scores(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        """Scores [vocab] of the next token from its logits; -inf for tokens that the rule does not allow."""
        scores = self.current.apply(logits)
        allowed = self.rule.allowed
        return scores if allowed is None else np.where(allowed, scores, -np.inf)

    def forced_after(self, token_ids: Sequence[int]) -> list[int]:
        """The only tokens that the rule allows after the text and these tokens; the text stays as it is."""
        num_output = len(self._output_ids)
        self.rule.extend(token_ids)
        forced = self.rule.forced()
        self.rule.roll_back(num_output)
        return forced

    def extend(self, token_ids: Sequence[int]) -> None:
        """Appends output tokens."""
        for token_id in token_ids if self._is_penalised else ():
            entry = self._entries.get(token_id)
            if entry is None:
                entry = self._add_entry(token_id)
            self._count(entry, self._counts[entry] + 1)
        self._output_ids.extend(token_ids)
        self.rule.extend(token_ids)

    def roll_back(self, length: int) -> None:
        """Keeps the first `length` tokens of the text, but the prompt at least."""
        num_output = max(0, length - self._num_prompt)
        for token_id in reversed(self._output_ids[num_output:] if self._is_penalised else ()):
            entry = self._entries[token_id]
            self._count(entry, self._counts[entry] - 1)
            if not self._counts[entry] and entry >= len(self._first.token_ids):
                del self._entries[token_id]
                self._counts.pop()
        del self._output_ids[num_output:]
        self.rule.roll_back(num_output)

    def _add_entry(self, token_id: int) -> int:
        entry = len(self._entries)
        if entry == len(self._table.token_ids):
            self._table = Adjustment._make(np.pad(column, (0, max(MIN_SPARE, entry))) for column in self._table)
        self._entries[token_id] = entry
        self._counts.append(0)
        self._table.token_ids[entry], self._table.bias[entry] = token_id, 0.0
        return entry

    def _count(self, entry: int, count: int) -> None:
        self._counts[entry] = count
        sampling, table = self._sampling, self._table
        if count:
            table.repetition[entry] = sampling.repetition_penalty
            table.penalty[entry] = sampling.presence_penalty + sampling.frequency_penalty * count
        elif entry < len(self._first.token_ids):
            table.repetition[entry], table.penalty[entry] = self._first.repetition[entry], 0.0
