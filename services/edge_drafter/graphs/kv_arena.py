"""Keys and values of all sessions of a graph whose layers take tensors [rows, kv_heads, capacity, head_size].

Invariant: each cache that was fed has a row, and its entries below `length` are there. The rows of a run lie side by
side: a row that does not is exchanged with one that is not in the run. The row of a cache that is gone is free.

Memory: rows and their length double when the caches need it. There are more rows as long as all of them together hold
at most `kept_tokens`. Pages that no token has reached take none. A new cache begins a new arena if it is the only one,
or if all caches need a quarter of the old one at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from services.edge_drafter.graphs.graph import DraftCache, Prefix
from shared.runtime.huge_pages import own_pages

FIRST_CAPACITY = 256  # tokens


class KvArena:
    """For `num_tensors` tensors, the keys and the values of each layer. One thread uses it."""

    def __init__(
        self, num_tensors: int, num_heads: int, head_size: int, kind: type, max_capacity: int, kept_tokens: int = 0
    ) -> None:
        self._num_tensors, self._num_heads, self._head_size = num_tensors, num_heads, head_size
        self._kind = np.dtype(kind)
        self._max_capacity = max_capacity
        self._kept_tokens = kept_tokens
        self._rows: WeakKeyDictionary[DraftCache, int] = WeakKeyDictionary()
        self.num_sizes = 0  # that it has had; views of an earlier size are void
        self._has_begun = False  # a session has begun in the row of another since the size was last looked at
        self._resize(*self._fitting(1, 1))

    @property
    def num_bytes(self) -> int:
        return self._numbers.nbytes

    @property
    def row_shape(self) -> tuple[int, int, int]:
        return (self._num_heads, self._capacity, self._head_size)

    def num_rows(self, num_caches: int, length: int) -> int:
        """Rows of an arena for so many caches of up to `length` tokens, or more if one that is there has more."""
        return self._fitting(num_caches, self._longest(length))[0]

    def address(self, tensor: int, row: int) -> int:
        """Of the row in a tensor; the next row follows it."""
        return int(self._numbers[tensor, row].ctypes.data)

    def copy(self, prefix: Prefix, target: DraftCache) -> None:
        """As Graph.copy. A prefix that is moved costs nothing: its row becomes that of `target`."""
        if prefix.is_moved:
            if prefix.cache in self._rows:
                self._rows[target] = self._rows.pop(prefix.cache)
                self._has_begun = True
            return
        self.line_up([target], prefix.length)
        source, row, part = self._rows[prefix.cache], self._rows[target], slice(prefix.start, prefix.length)
        self._numbers[:, row, :, part] = self._numbers[:, source, :, part]

    def line_up(self, caches: Sequence[DraftCache], length: int) -> list[int]:
        """Gives the caches adjacent rows with room for `length` tokens; returns the row of each."""
        self._make_room(caches, length)
        taken = {row: cache for cache, row in self._rows.items()}
        for cache in caches:
            if cache not in self._rows:
                row = next(row for row in range(self._num_rows) if row not in taken)
                self._rows[cache], taken[row] = row, cache
        rows = [self._rows[cache] for cache in caches]
        if max(rows) - min(rows) < len(rows):
            return rows
        first = self._best_place(rows, taken)
        wanted = [row for row in range(first, first + len(rows)) if row not in rows]
        for cache in caches:
            row = self._rows[cache]
            if not first <= row < first + len(rows):
                self._exchange(row, wanted.pop(), taken)
        return [self._rows[cache] for cache in caches]

    def _best_place(self, rows: Sequence[int], taken: dict[int, DraftCache]) -> int:
        """The first of adjacent rows that hold most of `rows`, and of those the ones with the fewest other entries."""

        def worth(first: int) -> tuple[int, int]:
            place = range(first, first + len(rows))
            others = [taken[row] for row in place if row in taken and row not in rows]
            return sum(row in place for row in rows), -sum(cache.length for cache in others)

        return max(range(self._num_rows - len(rows) + 1), key=worth)

    def _make_room(self, caches: Sequence[DraftCache], length: int) -> None:
        num_new = sum(cache not in self._rows for cache in caches)
        num_caches = len(self._rows) + num_new
        num_rows, capacity = self._fitting(num_caches, self._longest(length))
        is_too_small = num_caches > self._num_rows or length > self._capacity
        is_too_large = 4 * num_rows * capacity <= self._num_rows * self._capacity
        begins = num_new > 0 or self._has_begun
        self._has_begun = False
        if is_too_small or (begins and (is_too_large or (not self._rows and self.num_sizes > 1))):
            self._resize(num_rows, capacity)

    def _longest(self, length: int) -> int:
        return max(length, *(cache.length for cache in self._rows), 1)

    def _fitting(self, num_caches: int, length: int) -> tuple[int, int]:
        """Number and length of the rows for so many caches of up to `length` tokens."""
        capacity = min(_doubled(FIRST_CAPACITY, length), self._max_capacity)
        num_kept = self._kept_tokens // capacity
        return num_kept if num_caches <= num_kept else _doubled(1, num_caches), capacity

    def _resize(self, num_rows: int, capacity: int) -> None:
        """Moves all rows into new memory."""
        old = self._numbers if self.num_sizes else None
        shape = (self._num_tensors, num_rows, self._num_heads, capacity, self._head_size)
        pages = own_pages(math.prod(shape) * self._kind.itemsize)
        self._numbers: NDArray[Any] = np.frombuffer(pages, self._kind).reshape(shape)
        self._num_rows, self._capacity = num_rows, capacity
        self.num_sizes += 1
        for place, (cache, row) in enumerate(sorted(self._rows.items(), key=lambda item: item[1])):
            assert old is not None
            self._numbers[:, place, :, : cache.length] = old[:, row, :, : cache.length]
            self._rows[cache] = place

    def _exchange(self, row: int, other: int, taken: dict[int, DraftCache]) -> None:
        """Exchanges the content of a row with that of another, which may be free."""
        cache, moved = taken[row], taken.get(other)
        kept = self._numbers[:, other, :, : moved.length].copy() if moved else None
        self._numbers[:, other, :, : cache.length] = self._numbers[:, row, :, : cache.length]
        self._rows[cache] = other
        if moved is not None and kept is not None:
            self._numbers[:, row, :, : moved.length] = kept
            self._rows[moved] = row


def _doubled(number: int, least: int) -> int:
    """The number, doubled until it is at least `least`."""
    while number < least:
        number *= 2
    return number
