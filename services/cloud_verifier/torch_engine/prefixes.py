"""Automatic prefix caching: keeps the KV caches of ended sessions until their memory is needed.

Invariant: a found prefix was computed for the same tokens in the same scope. Keys and values depend on the preceding
tokens alone, bit for bit (docs/sampling.md), so a copy equals a prefill. Kept caches are never written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.cloud_verifier.torch_engine.kv import KvCache, Prefix

MIN_TOKENS = 16  # computing a shorter prefix takes no longer than copying it


def num_common(left: NDArray[np.int64], right: NDArray[np.int64]) -> int:
    """Length of the common prefix."""
    length = min(len(left), len(right))
    different = np.flatnonzero(left[:length] != right[:length])
    return int(different[0]) if len(different) else length


@dataclass(frozen=True, slots=True, eq=False)
class KeptCache:
    """A cache that holds `token_ids` and reserves `reserved` tokens."""

    scope: str
    token_ids: NDArray[np.int64]
    cache: KvCache
    reserved: int


class PrefixCache:
    """Kept caches in LRU order, most recent last."""

    def __init__(self) -> None:
        self._kept: list[KeptCache] = []

    @property
    def reserved(self) -> int:
        """Tokens reserved by all kept caches."""
        return sum(each.reserved for each in self._kept)

    def keep(self, scope: str, token_ids: Sequence[int], cache: KvCache, reserved: int) -> None:
        """Keeps a cache that holds `token_ids`, and drops caches that hold only a prefix of them."""
        new = KeptCache(scope, np.array(token_ids, dtype=np.int64), cache, reserved)
        if len(new.token_ids) < MIN_TOKENS:
            return
        self._kept = [each for each in self._kept if not _covers(new, each)]
        if any(_covers(each, new) for each in self._kept):
            return
        self._kept.append(new)

    def find(self, scope: str, token_ids: NDArray[np.int64]) -> Prefix | None:
        """The longest cached prefix of `token_ids`; None if shorter than MIN_TOKENS."""
        lengths = [num_common(each.token_ids, token_ids) if each.scope == scope else 0 for each in self._kept]
        length = max(lengths, default=0)
        if length < MIN_TOKENS:
            return None
        used = self._kept.pop(lengths.index(length))
        self._kept.append(used)
        return Prefix(used.cache, length)

    def shrink(self, reserved: int) -> None:
        """Drops the least recently used caches until at most `reserved` tokens are reserved."""
        while self._kept and self.reserved > reserved:
            self._kept.pop(0)


def _covers(longer: KeptCache, shorter: KeptCache) -> bool:
    is_long = longer.scope == shorter.scope and len(longer.token_ids) >= len(shorter.token_ids)
    return is_long and num_common(longer.token_ids, shorter.token_ids) == len(shorter.token_ids)
