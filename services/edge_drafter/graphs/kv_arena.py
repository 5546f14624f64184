"""Keys and values of all sessions of a graph whose layers take tensors [rows, kv_heads, capacity, head_size].

Invariant: each cache that was fed has a row, and its entries below `length` are there. The rows of a run lie side by
side: a row that does not is exchanged with one that is not in the run. The row of a cache that is gone is free.

Memory: at most twice the rows and twice the length that the caches need. Pages that no token has reached take none.
When no cache is left, the next one begins a new arena.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from services.edge_drafter.graphs.graph import DraftCache
from shared.runtime.huge_pages import own_pages

FIRST_CAPACITY = 256  # tokens


class KvArena:
    """For `num_tensors` tensors, the keys and the values of each layer. One thread uses it."""

    def __init__(self, num_tensors: int, num_heads: int, head_size: int, kind: type, max_capacity: int) -> None:
        self._num_tensors, self._num_heads, self._head_size = num_tensors, num_heads, head_size
        self._kind = np.dtype(kind)
        self._max_capacity = max_capacity
        self._rows: WeakKeyDictionary[DraftCache, int] = WeakKeyDictionary()
        self.num_sizes = 0  # that it has had; views of an earlier size are void
        self._resize(1, min(FIRST_CAPACITY, max_capacity))

    @property
    def row_shape(self) -> tuple[int, int, int]:
        return (self._num_heads, self._capacity, self._head_size)

    def address(self, tensor: int, row: int) -> int:
        """Of the row in a tensor; the next row follows it."""
        return int(self._numbers[tensor, row].ctypes.data)

    def line_up(self, caches: Sequence[DraftCache], length: int) -> list[int]:
        """Gives the caches adjacent rows with room for `length` tokens; returns the row of each."""
        self._make_room(caches, length)
        taken = {row: cache for cache, row in self._rows.items()}
        for cache in caches:
            if cache not in self._rows:
                row = next(row for row in range(self._num_rows) if row not in taken)
                self._rows[cache], taken[row] = row, cache
        rows = [self._rows[cache] for cache in caches]
        first = max(range(self._num_rows - len(rows) + 1), key=lambda first: _num_within(rows, first))
        wanted = [row for row in range(first, first + len(rows)) if row not in rows]
        for cache in caches:
            row = self._rows[cache]
            if not first <= row < first + len(rows):
                self._exchange(row, wanted.pop(), taken)
        return [self._rows[cache] for cache in caches]

    def _make_room(self, caches: Sequence[DraftCache], length: int) -> None:
        num_rows = len(self._rows) + sum(cache not in self._rows for cache in caches)
        if len(self._rows) == 0 and self.num_sizes > 1:
            self._resize(_doubled(1, num_rows), min(_doubled(FIRST_CAPACITY, length), self._max_capacity))
        elif num_rows > self._num_rows or length > self._capacity:
            capacity = min(_doubled(self._capacity, length), self._max_capacity)
            self._resize(_doubled(self._num_rows, num_rows), capacity)

    def _resize(self, num_rows: int, capacity: int) -> None:
        """Moves all rows into new memory."""
        old = self._numbers if self.num_sizes else None
        shape = (self._num_tensors, num_rows, self._num_heads, capacity, self._head_size)
        pages = own_pages(math.prod(shape) * self._kind.itemsize)
        self._numbers: NDArray[Any] = np.frombuffer(pages, self._kind).reshape(shape)
        self._num_rows, self._capacity = num_rows, capacity
        self.num_sizes += 1
        for cache, row in self._rows.items():
            assert old is not None
            self._numbers[:, row, :, : cache.length] = old[:, row, :, : cache.length]

    def _exchange(self, row: int, other: int, taken: dict[int, DraftCache]) -> None:
        """Exchanges the content of a row with that of another, which may be free."""
        cache, moved = taken[row], taken.get(other)
        kept = self._numbers[:, other, :, : moved.length].copy() if moved else None
        self._numbers[:, other, :, : cache.length] = self._numbers[:, row, :, : cache.length]
        self._rows[cache] = other
        if moved is not None and kept is not None:
            self._numbers[:, row, :, : moved.length] = kept
            self._rows[moved] = row


def _num_within(rows: Sequence[int], first: int) -> int:
    """How many of the rows are among the len(rows) rows from `first` on."""
    return sum(first <= row < first + len(rows) for row in rows)


def _doubled(number: int, least: int) -> int:
    """The number, doubled until it is at least `least`."""
    while number < least:
        number *= 2
    return number
