"""A drafter process that guesses random ids: python -m benchmarks.liar, with the settings of a drafter.

It computes no model, so that it takes no processor time from others: what it costs them, it costs through the verifier.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from services.edge_drafter.service import run
from services.edge_drafter.settings import DrafterSettings
from shared.config import load

VOCABULARY, MAX_CONTEXT = 49152, 8192
STEP_S = 0.005  # as a fast draft model takes


class NoCache:
    """Nothing is kept."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity


@dataclass
class RandomModel:
    """Stands in for a DraftModel: any id is as likely as any other, whatever the text."""

    name: str = "random"
    vocab_size: int = VOCABULARY
    max_context: int = MAX_CONTEXT
    _random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    def new_cache(self, capacity: int) -> NoCache:
        return NoCache(capacity)

    def feed(self, cache: NoCache, token_ids: Sequence[int], start: int) -> np.ndarray:
        time.sleep(STEP_S)
        logits = np.zeros(self.vocab_size, dtype=np.float32)
        logits[self._random.integers(self.vocab_size)] = 1.0
        return logits


if __name__ == "__main__":
    settings = load(DrafterSettings, sys.argv[1:], "python -m benchmarks.liar")
    run(settings, load_model=lambda _: RandomModel())  # type: ignore[arg-type, return-value]
