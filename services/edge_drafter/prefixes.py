"""The prefix cache: sessions take over keys and values of others whose texts begin alike.

Invariant: what is taken over was computed for the same tokens, of a session with the same cache scope. Keys and values
depend on the tokens before them alone, so guesses are those of a session that reads its text itself, with the same gap
if there is one. Kept caches are not written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.edge_drafter.graphs.graph import DraftCache, Prefix
from shared.protocol.guesses import common_prefix

MIN_TOKENS = 16  # fewer are not worth a copy


@dataclass(frozen=True, slots=True)
class Gap:
    """Positions of a text from `start` to before `end`, which its draft does not read."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True, eq=False)
class HeldText:
    """A text whose keys and values are in a cache, but for those of its gap."""

    scope: str
    token_ids: Sequence[int]
    cache: DraftCache
    gap: Gap | None = None

    def num_common(self, token_ids: Sequence[int]) -> int:
        """Leading tokens of a text that need not be read. After a failed step the cache holds less than it should."""
        num, gap = common_prefix(self.token_ids, token_ids), self.gap
        if gap is None or min(num, self.cache.length) <= gap.start:
            return min(num, self.cache.length)
        return gap.start if num < gap.end else min(num, self.cache.length + gap.length)

    def is_start_of(self, other: HeldText) -> bool:
        return self.scope == other.scope and self.num_common(other.token_ids) == len(self.token_ids)


class PrefixCache:
    """Texts of ended sessions, of at most `max_tokens` tokens together. The least recently used ones give way."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._kept: dict[HeldText, None] = {}  # the most recently used last

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def num_tokens(self) -> int:
        return sum(len(kept.token_ids) for kept in self._kept)

    def keep(self, text: HeldText) -> None:
        """Keeps the text of an ended session in place of those that it goes on with."""
        if not MIN_TOKENS <= len(text.token_ids) <= self.max_tokens or any(map(text.is_start_of, self._kept)):
            return
        self._kept = {kept: None for kept in self._kept if not kept.is_start_of(text)}
        self._kept[text] = None
        while self.num_tokens > self.max_tokens:
            self._drop_oldest()

    def take(
        self, scope: str, token_ids: Sequence[int], computed: int, live: Iterable[HeldText], max_kept: int
    ) -> tuple[Prefix, Gap | None] | None:
        """The longest start of a text that its session need not compute, if it saves MIN_TOKENS; `computed` it has, and
        the gap that the session takes over with it.

        live: what other sessions have computed. At most `max_kept` texts stay. One that is used up to its end, but for
        fewer than MIN_TOKENS, does not, nor one that is used as it gives way: its cache is moved.
        """
        start = token_ids[:-1]  # the last token is fed for its logits
        held = [
            (each.num_common(start), each)
            for each in (*self._kept, *live)
            if each.scope == scope and (each.gap is None or computed <= each.gap.start)
        ]
        length, found = max(held, key=lambda pair: pair[0], default=(0, None))
        if found is None or length - computed < MIN_TOKENS:
            return None
        was_kept = found in self._kept
        if was_kept:
            del self._kept[found]
            if len(found.token_ids) - length >= MIN_TOKENS:
                self._kept[found] = None
            self.shrink(max_kept)
        gap = found.gap if found.gap and length > found.gap.start else None
        in_cache = length - (gap.length if gap else 0)
        return Prefix(found.cache, computed, in_cache, is_moved=was_kept and found not in self._kept), gap

    def shrink(self, max_kept: int) -> None:
        """Drops texts until at most `max_kept` are left."""
        while len(self._kept) > max(0, max_kept):
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        del self._kept[next(iter(self._kept))]
