"""Replayed stand-ins: recorded texts and acceptance, timed waits, no compute.

Invariant: after a recorded prompt the target draws the recorded continuation, and the draft's guesses are right, and as
confident, as recorded. A text that is not recorded, or that continues past the recorded end, fails its session at the
target. Tokens after a wrong guess are never compared, so any token serves there.

Use temperature 0: with a temperature the drafter's noise may turn a right guess into a wrong one. Other sampling
options have no effect.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import cast

import numpy as np

from benchmarks.harness.standin import STANDIN
from benchmarks.standins.paced import wait_for_pass, wait_for_step
from benchmarks.standins.pacer import Pacer
from services.cloud_verifier.engine import Drawn
from services.cloud_verifier.torch_engine.kv import Prefix
from services.cloud_verifier.torch_engine.model import Row
from services.edge_drafter.graphs.graph import Prefix as DraftPrefix
from services.edge_drafter.model import DraftRow
from shared.data.profiles import Profile
from shared.data.recording import Recorded, Recording
from shared.protocol.guesses import common_prefix

WARM_UP_TOKEN = 0  # warm-up texts consist of this token


class NotRecorded(ValueError):
    """The recording does not hold the text."""


class ReplayCache:
    """The tokens of a KV cache, and the recorded prompt with which they begin."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.text: list[int] = []
        self.recorded: Recorded | None = None

    @property
    def length(self) -> int:
        return len(self.text)

    def feed(self, token_ids: Sequence[int], start: int) -> None:
        if not token_ids or not 0 <= start <= self.length or start + len(token_ids) > self.capacity:
            raise ValueError(
                f"cannot feed {len(token_ids)} tokens at {start}: cache holds {self.length} of {self.capacity}"
            )
        self.text[start:] = token_ids
        if len(token_ids) > 1:  # part of a prompt, so a longer recorded prompt may match now
            self.recorded = None

    def copy(self, prefix: Prefix | DraftPrefix) -> None:
        """As KvCache.copy, from another ReplayCache."""
        assert isinstance(prefix.cache, ReplayCache)
        self.text = prefix.cache.text[: prefix.length]
        self.recorded = None


class RecordedPrompts:
    """The prompts of a recording, by the texts that begin with them."""

    def __init__(self, recording: Recording) -> None:
        self._by_prompt = {each.prompt_ids: each for each in recording.prompts}
        self._lengths = sorted({len(prompt) for prompt in self._by_prompt}, reverse=True)

    def find(self, cache: ReplayCache) -> Recorded | None:
        """The longest recorded prompt with which the text begins; None for a warm-up. Raises NotRecorded."""
        if cache.recorded is None and any(cache.text):
            texts = (tuple(cache.text[:length]) for length in self._lengths if length <= cache.length)
            cache.recorded = next((found for text in texts if (found := self._by_prompt.get(text))), None)
            if cache.recorded is None:
                raise NotRecorded(f"a text of {cache.length} tokens begins with no recorded prompt")
        return cache.recorded


class ReplayedTarget:
    """A TargetModel without a model."""

    def __init__(self, recording: Recording, profile: Profile) -> None:
        self.name = f"{STANDIN}-replayed-{profile.name}-{recording.header.target}"
        self.fingerprint = self.name
        self.vocab_size = recording.header.vocab_size
        self.max_context = recording.header.max_context
        self.pace = Pacer()
        self._library = RecordedPrompts(recording)
        self._times = profile.pass_times

    def new_cache(self, capacity: int) -> ReplayCache:
        return ReplayCache(capacity)

    def step(self, rows: Sequence[Row]) -> list[Drawn]:
        started = time.perf_counter()
        drawn = [Drawn(self._draws(row), []) for row in rows]
        wait_for_pass(self.pace, started, self._times, rows)
        return drawn

    def _draws(self, row: Row) -> list[int]:
        cache = row.cache
        assert isinstance(cache, ReplayCache)
        if row.num_top is not None:
            raise NotRecorded("logprobs are not recorded")
        cache.feed(row.token_ids, row.start)
        recorded = self._library.find(cache) if row.num_draws else None
        if recorded is None:
            return [WARM_UP_TOKEN] * row.num_draws
        first = cache.length - row.num_draws + 1 - len(recorded.prompt_ids)
        known = recorded.target_ids[first : first + row.num_draws]
        draws = [*known, *[recorded.target_ids[-1]] * (row.num_draws - len(known))]
        # The draw after a whole answer is a bonus token that is never committed.
        if first + common_prefix(row.guesses, draws) > len(recorded.target_ids):
            raise NotRecorded(f"the text exceeds the {len(recorded.target_ids)} tokens recorded for its prompt")
        return draws


class ReplayedDraft:
    """A DraftModel without a model."""

    def __init__(self, recording: Recording, profile: Profile) -> None:
        self.name = f"{STANDIN}-replayed-{profile.name}-{recording.header.draft}"
        self.vocab_size = recording.header.vocab_size
        self.max_context = recording.header.max_context
        self.max_rows = profile.step_times.max_rows
        self.num_nodes: dict[str, int] = {}  # it has no graph
        self.kv_bytes = 0
        self.pace = Pacer()
        self._library = RecordedPrompts(recording)
        self._times = profile.step_times

    def new_cache(self, capacity: int) -> ReplayCache:
        if not 1 <= capacity <= self.max_context:
            raise ValueError(f"capacity {capacity} is not in 1..{self.max_context}")
        return ReplayCache(capacity)

    def num_caches(self, num_used: int, length: int) -> int:
        return sys.maxsize

    def step(self, rows: Sequence[DraftRow]) -> list[np.ndarray]:
        """Logits [vocab] of each row, float32. Their softmax gives the guess its recorded confidence."""
        started = time.perf_counter()
        caches = [cast(ReplayCache, row.cache) for row in rows]
        for cache, row in zip(caches, rows, strict=True):
            if row.prefix is not None:
                cache.copy(row.prefix)
            cache.feed(row.token_ids, row.start)
        logits = [self._logits(cache) for cache in caches]
        wait_for_step(self.pace, started, self._times, rows)
        return logits

    def _logits(self, cache: ReplayCache) -> np.ndarray:
        recorded = self._recorded(cache)
        index = cache.length - len(recorded.prompt_ids) if recorded else -1
        if recorded is None or not 0 <= index < len(recorded.target_ids):
            return np.zeros(self.vocab_size, dtype=np.float32)  # inside a prompt, or past the recorded end
        right = recorded.target_ids[index]
        guess = right if recorded.draft_right[index] else self._wrong(right)
        # A probability of 1 / vocab or less cannot be that of the most likely token.
        confidence = max(recorded.confidence[index], 2 / self.vocab_size)
        others = math.log(max(1 - confidence, 1e-9) / (self.vocab_size - 1))
        logits = np.full(self.vocab_size, others, dtype=np.float32)
        logits[guess] = math.log(confidence)
        return logits

    def _recorded(self, cache: ReplayCache) -> Recorded | None:
        """As RecordedPrompts.find, but None inside a prompt, which arrives in chunks."""
        try:
            return self._library.find(cache)
        except NotRecorded:
            return None

    def _wrong(self, right: int) -> int:
        return right + 1 if right + 1 < self.vocab_size else right - 1
