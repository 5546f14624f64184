"""Logprobs of many tokens in flat arrays: 12 bytes for each of the most probable tokens, 16 for the token itself."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

from shared.protocol.messages import TokenIds, TokenLogprobs

# Tokens of one verdict, which keeps it below MAX_MESSAGE_BYTES. The gateway polls for the rest.
MAX_TOLD_WITH_LOGPROBS = 512


class KeptLogprobs(Sequence[TokenLogprobs]):
    """A list that only grows. What it returns equals what was appended, bit for bit."""

    def __init__(self) -> None:
        self._logprobs = array("d")
        self._ends = array("Q")  # of each token's part of the arrays below
        self._top_ids = array("I")
        self._top_logprobs = array("d")

    def __len__(self) -> int:
        return len(self._logprobs)

    @overload
    def __getitem__(self, index: int) -> TokenLogprobs: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenLogprobs]: ...
    def __getitem__(self, index: int | slice) -> TokenLogprobs | list[TokenLogprobs]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start, end = self._ends[index - 1] if index else 0, self._ends[index]
        top_ids = TokenIds(self._top_ids[start:end])
        return TokenLogprobs(self._logprobs[index], top_ids, self._top_logprobs[start:end].tolist())

    def follow(self, start: int, logprobs: Sequence[TokenLogprobs]) -> None:
        """Takes those from index `start` on, as far as they are new; none behind a gap."""
        if start <= len(self):
            self.extend(logprobs[len(self) - start :])

    def extend(self, logprobs: Iterable[TokenLogprobs]) -> None:
        for each in logprobs:
            self._logprobs.append(each.logprob)
            self._top_ids.extend(each.top_ids)
            self._top_logprobs.extend(each.top_logprobs)
            self._ends.append(len(self._top_ids))
