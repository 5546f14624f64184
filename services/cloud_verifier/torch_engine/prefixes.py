"""Prefix caching: finds texts that begin alike, and keeps the KV caches of ended sessions until their memory is needed.

Invariant: a found prefix was computed for the same tokens in the same scope. Keys and values depend on the preceding
tokens alone, bit for bit (docs/sampling.md), so a copy equals a prefill. Kept caches are never written.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.cloud_verifier.torch_engine.kv import KvCache, Prefix

MIN_TOKENS = 16  # computing a shorter prefix takes no longer than copying it

Holder = TypeVar("Holder")


def num_common(left: NDArray[np.uint32], right: NDArray[np.uint32]) -> int:
    """Length of the common prefix."""
    length = min(len(left), len(right))
    different = left[:length] != right[:length]
    first = int(different.argmax()) if length else 0
    return first if length and different[first] else length


class Key(NamedTuple):
    """A text of a scope, in an order in which texts that begin alike stand together."""

    scope: str
    data: bytes  # the token ids, 4 bytes each

    @classmethod
    def of(cls, scope: str, token_ids: Sequence[int] | NDArray[np.integer]) -> Key:
        return cls(scope, np.asarray(token_ids, dtype=np.uint32).tobytes())

    @property
    def token_ids(self) -> NDArray[np.uint32]:
        return np.frombuffer(self.data, dtype=np.uint32)


class SortedTexts(Generic[Holder]):
    """Keys in order, each with its holder; equal keys in the order of adding.

    No text has a longer prefix in common with a key than one of its two neighbours has. So a search compares with
    log2(n) keys, and only the neighbours' common prefixes need counting.
    """

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._holders: list[Holder] = []

    def add(self, key: Key, holder: Holder) -> None:
        place = bisect_right(self._keys, key)
        self._keys.insert(place, key)
        self._holders.insert(place, holder)

    def remove(self, key: Key, holder: Holder) -> None:
        place = self._holders.index(holder, bisect_left(self._keys, key))
        del self._keys[place], self._holders[place]

    def beside(self, key: Key, accepts: Callable[[Holder], bool] = lambda holder: True) -> list[Holder]:
        """The nearest accepted holder on each side of a key, in its scope."""
        place = bisect_left(self._keys, key)
        sides = (range(place - 1, -1, -1), range(place, len(self._keys)))
        found = (self._first(side, key.scope, accepts) for side in sides)
        return [holder for holder in found if holder is not None]

    def _first(self, places: Iterable[int], scope: str, accepts: Callable[[Holder], bool]) -> Holder | None:
        for place in places:
            if self._keys[place].scope != scope:
                return None
            if accepts(self._holders[place]):
                return self._holders[place]
        return None


@dataclass(frozen=True, slots=True, eq=False)
class KeptCache:
    """A cache that holds the tokens of `key` and reserves `reserved` tokens."""

    key: Key
    cache: KvCache
    reserved: int


class PrefixCache:
    """Kept caches in LRU order, most recent last. None holds a prefix of another one's text."""

    def __init__(self) -> None:
        self._kept: dict[KeptCache, None] = {}
        self._texts: SortedTexts[KeptCache] = SortedTexts()
        self.reserved = 0  # tokens, by all kept caches

    def keep(self, key: Key, cache: KvCache, reserved: int) -> None:
        """Keeps a cache that holds the tokens of `key`, and drops a cache that holds only a prefix of them."""
        new = KeptCache(key, cache, reserved)
        if len(key.token_ids) < MIN_TOKENS:
            return
        for other in self._texts.beside(key):  # a prefix, or what goes on with the text, stands beside it
            if key.data.startswith(other.key.data):
                self._drop(other)
            elif other.key.data.startswith(key.data):
                return
        self._kept[new] = None
        self._texts.add(key, new)
        self.reserved += reserved

    def find(self, key: Key) -> Prefix | None:
        """The longest cached prefix of the tokens of `key`; None if shorter than MIN_TOKENS."""
        lengths = {other: num_common(other.key.token_ids, key.token_ids) for other in self._texts.beside(key)}
        length = max(lengths.values(), default=0)
        if length < MIN_TOKENS:
            return None
        used = next(other for other in lengths if lengths[other] == length)
        self._kept[used] = self._kept.pop(used)
        return Prefix(used.cache, length)

    def shrink(self, reserved: int) -> None:
        """Drops the least recently used caches until at most `reserved` tokens are reserved."""
        while self._kept and self.reserved > reserved:
            self._drop(next(iter(self._kept)))

    def _drop(self, kept: KeptCache) -> None:
        del self._kept[kept]
        self._texts.remove(kept.key, kept)
        self.reserved -= kept.reserved
