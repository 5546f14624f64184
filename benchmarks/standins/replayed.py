"""Replayed stand-ins: recorded texts and acceptance, timed waits, no compute.

Invariant: behind a recorded prompt the target's draws are the recorded continuation, and the draft's guesses are right
where, and as confident as, the recording says. Texts that are not in the recording, or go on behind its end, fail their
session at the target: nothing is made up. What is guessed or drawn behind a wrong guess is compared with nothing, so
any token does.

Sampling options change nothing of it, except that with a temperature the drafter's noise may turn a right guess into a
wrong one: ask with temperature 0.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.standins.paced import wait_for_pass, wait_or_tell
from benchmarks.standins.pacer import Pace
from benchmarks.standins.settings import STANDIN
from services.cloud_verifier.engine import Drawn
from services.cloud_verifier.torch_engine.kv import Prefix
from services.cloud_verifier.torch_engine.model import Row
from shared.data.profiles import Profile
from shared.data.recording import Recorded, Recording
from shared.protocol.guesses import common_prefix

WARM_UP_TOKEN = 0  # services warm up with texts of it alone


class NotRecorded(ValueError):
    """The recording does not say how a text goes on."""


class ReplayCache:
    """The tokens that a real cache would hold keys and values of, and what is recorded of them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.text: list[int] = []
        self.recorded: Recorded | None = None

    @property
    def length(self) -> int:
        return len(self.text)

    def feed(self, token_ids: Sequence[int], start: int) -> None:
        if not token_ids or not 0 <= start <= self.length or start + len(token_ids) > self.capacity:
            raise ValueError(f"{len(token_ids)} tokens at {start} into {self.length} of {self.capacity}")
        self.text[start:] = token_ids
        if len(token_ids) > 1:  # perhaps a part of a prompt, that began like a shorter one so far
            self.recorded = None

    def copy(self, prefix: Prefix) -> None:
        """As KvCache has it, of another ReplayCache."""
        assert isinstance(prefix.cache, ReplayCache)
        self.text = prefix.cache.text[: prefix.length]


class Library:
    """The prompts of a recording, found by the texts that begin with them."""

    def __init__(self, recording: Recording) -> None:
        self._by_prompt = {each.prompt_ids: each for each in recording.prompts}
        self._lengths = sorted({len(prompt) for prompt in self._by_prompt}, reverse=True)

    def find(self, cache: ReplayCache) -> Recorded | None:
        """What is recorded behind the longest prompt that the cache's text begins with; None for a warm-up."""
        if cache.recorded is None and any(cache.text):
            texts = (tuple(cache.text[:length]) for length in self._lengths if length <= cache.length)
            cache.recorded = next((found for text in texts if (found := self._by_prompt.get(text))), None)
            if cache.recorded is None:
                raise NotRecorded(f"no recorded prompt begins a text of {cache.length} tokens")
        return cache.recorded


class ReplayedTarget:
    """A TargetModel without a model."""

    def __init__(self, recording: Recording, profile: Profile) -> None:
        self.name = f"{STANDIN}-replayed-{profile.name}-{recording.header.target}"
        self.fingerprint = self.name
        self.vocab_size = recording.header.vocab_size
        self.max_context = recording.header.max_context
        self.pace = Pace()
        self._library = Library(recording)
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
        # The draw behind a whole answer is the bonus of its last token, and is not committed.
        if first + common_prefix(row.guesses, draws) > len(recorded.target_ids):
            raise NotRecorded(f"only {len(recorded.target_ids)} tokens are recorded behind this prompt")
        return draws


class ReplayedDraft:
    """A DraftModel without a model."""

    def __init__(self, recording: Recording, profile: Profile) -> None:
        self.name = f"{STANDIN}-replayed-{profile.name}-{recording.header.draft}"
        self.vocab_size = recording.header.vocab_size
        self.max_context = recording.header.max_context
        self.pace = Pace()
        self._library = Library(recording)
        self._times = profile.step_times

    def new_cache(self, capacity: int) -> ReplayCache:
        if not 1 <= capacity <= self.max_context:
            raise ValueError(f"capacity {capacity} is not in 1..{self.max_context}")
        return ReplayCache(capacity)

    def feed(self, cache: ReplayCache, token_ids: Sequence[int], start: int) -> np.ndarray:
        """Logits [vocab] float32, of a softmax that gives the guess its recorded confidence."""
        started = time.perf_counter()
        cache.feed(token_ids, start)
        logits = self._logits(cache)
        wait_or_tell(self.pace, started, self._times.feed_ms(len(token_ids), start))
        return logits

    def _logits(self, cache: ReplayCache) -> np.ndarray:
        recorded = self._recorded(cache)
        index = cache.length - len(recorded.prompt_ids) if recorded else -1
        if recorded is None or not 0 <= index < len(recorded.target_ids):
            return np.zeros(self.vocab_size, dtype=np.float32)  # of a part of a prompt, or behind the end: no guess
        right = recorded.target_ids[index]
        guess = right if recorded.draft_right[index] else self._wrong(right)
        # A guess with the probability 1 / vocab or less could not be the likeliest token.
        confidence = max(recorded.confidence[index], 2 / self.vocab_size)
        others = math.log(max(1 - confidence, 1e-9) / (self.vocab_size - 1))
        logits = np.full(self.vocab_size, others, dtype=np.float32)
        logits[guess] = math.log(confidence)
        return logits

    def _recorded(self, cache: ReplayCache) -> Recorded | None:
        """None inside a prompt too, which comes in chunks."""
        try:
            return self._library.find(cache)
        except NotRecorded:
            return None

    def _wrong(self, right: int) -> int:
        return right + 1 if right + 1 < self.vocab_size else right - 1
