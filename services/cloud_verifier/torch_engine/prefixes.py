"""Automatic prefix caching: KV caches of sessions that are over, kept while nobody needs their room.

Invariant: what is found has been computed for exactly the tokens asked about, in the same scope; a token's keys and
values depend on the tokens before it alone, to the bit (docs/sampling.md), so that a copy is as good as a prefill.
Nothing kept is ever written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.cloud_verifier.torch_engine.kv import KvCache, Prefix

MIN_TOKENS = 16  # a shorter prefix is computed as fast as it is copied


def num_common(left: NDArray[np.int64], right: NDArray[np.int64]) -> int:
    """How many leading tokens are equal."""
    length = min(len(left), len(right))
    different = np.flatnonzero(left[:length] != right[:length])
    return int(different[0]) if len(different) else length


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A cache that holds `token_ids`, and the room it takes, in tokens."""

    scope: str
    token_ids: NDArray[np.int64]
    cache: KvCache
    reserved: int


class PrefixCache:
    """Kept caches, the one used last at the end."""

    def __init__(self) -> None:
        self._kept: list[Kept] = []

    @property
    def reserved(self) -> int:
        """The room that all kept caches take, in tokens."""
        return sum(each.reserved for each in self._kept)

    def keep(self, scope: str, token_ids: Sequence[int], cache: KvCache, reserved: int) -> None:
        """Takes over a cache that holds `token_ids`; those that hold no more than a beginning of them are dropped."""
        new = Kept(scope, np.array(token_ids, dtype=np.int64), cache, reserved)
        if len(new.token_ids) < MIN_TOKENS:
            return
        self._kept = [each for each in self._kept if not _covers(new, each)]
        if any(_covers(each, new) for each in self._kept):
            return
        self._kept.append(new)

    def find(self, scope: str, token_ids: NDArray[np.int64]) -> Prefix | None:
        """The longest prefix of `token_ids` that a cache holds, None when it is not worth a copy."""
        lengths = [num_common(each.token_ids, token_ids) if each.scope == scope else 0 for each in self._kept]
        length = max(lengths, default=0)
        if length < MIN_TOKENS:
            return None
        used = self._kept.pop(lengths.index(length))
        self._kept.append(used)
        return Prefix(used.cache, length)

    def shrink(self, reserved: int) -> None:
        """Drops caches, those used longest ago first, until they take at most `reserved` tokens."""
        while self._kept and self.reserved > reserved:
            self._kept.pop(0)


def _covers(longer: Kept, shorter: Kept) -> bool:
    is_long = longer.scope == shorter.scope and len(longer.token_ids) >= len(shorter.token_ids)
    return is_long and num_common(longer.token_ids, shorter.token_ids) == len(shorter.token_ids)
