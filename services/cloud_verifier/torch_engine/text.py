"""The committed text of a context: the engine's thread writes it, the event loop reads it.

Invariant: an array that was read from `ids` never changes. A position that holds another token is written in a copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Text:
    """At most `capacity` tokens. Writing costs as much as the tokens written."""

    def __init__(self, token_ids: Sequence[int], capacity: int) -> None:
        self._buffer = np.empty(capacity, dtype=np.uint32)
        self._buffer[: len(token_ids)] = token_ids
        self._num_written = len(token_ids)
        self.ids: NDArray[np.uint32] = self._buffer[: len(token_ids)]

    def grow(self, capacity: int) -> None:
        """Makes room for `capacity` tokens. Must not overlap with `write`."""
        buffer = np.empty(capacity, dtype=np.uint32)
        buffer[: self._num_written] = self._buffer[: self._num_written]
        self._buffer, self.ids = buffer, buffer[: len(self.ids)]

    def write(self, start: int, token_ids: Sequence[int], *, is_end: bool) -> None:
        """Puts tokens at start, start + 1, ... The text ends behind them if `is_end`, or if it ended before."""
        new, end = np.array(token_ids, dtype=np.uint32), start + len(token_ids)
        known = self._buffer[start : min(end, self._num_written)]
        if not np.array_equal(known, new[: len(known)]):
            self._buffer = self._buffer.copy()
        self._buffer[start:end] = new
        self._num_written = max(self._num_written, end)
        self.ids = self._buffer[: end if is_end else max(end, len(self.ids))]
