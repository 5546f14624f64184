"""A draft model that lies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.edge_drafter.model import DraftCache, DraftModel


class Liar:
    """A draft model that guesses random ids, whatever the text."""

    def __init__(self, honest: DraftModel, seed: int) -> None:
        self.name = "liar"
        self.vocab_size = honest.vocab_size
        self.max_context = honest.max_context
        self._honest = honest
        self._random = np.random.default_rng(seed)

    def new_cache(self, capacity: int) -> DraftCache:
        return self._honest.new_cache(capacity)

    def feed(self, cache: DraftCache, token_ids: Sequence[int], start: int) -> np.ndarray:
        return self._random.permutation(self._honest.feed(cache, token_ids, start))
