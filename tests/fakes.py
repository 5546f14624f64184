"""Fake target and draft models, for tests of the services around them.

A token is a function of the whole text before it, so a service that feeds a wrong text, or rolls back to a wrong place,
gets other tokens. The caches refuse what the real ones refuse.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from services.cloud_verifier.engine import Drawn
from services.cloud_verifier.torch_engine.engine import TorchEngine
from services.cloud_verifier.torch_engine.kv import Prefix
from services.cloud_verifier.torch_engine.model import Row, TargetModel
from services.edge_drafter.graphs.graph import Prefix as DraftPrefix
from services.edge_drafter.model import DraftRow
from shared.protocol.messages import TokenIds, TokenLogprobs

VOCABULARY = 97
MAX_CONTEXT = 1024
WAIT_S = 10.0


def next_token(text: Sequence[int], seed: int = 0) -> int:
    """The target's draw after `text`; never 0."""
    return 1 + zlib.crc32(array("I", text).tobytes(), seed) % (VOCABULARY - 1)


def answer(prompt: Sequence[int], num_tokens: int, seed: int = 0) -> list[int]:
    """The target's answer to a prompt."""
    text = list(prompt)
    for _ in range(num_tokens):
        text.append(next_token(text, seed))
    return text[len(prompt) :]


def wrong(token: int) -> int:
    """A token other than `token`."""
    return 1 + token % (VOCABULARY - 1)


def no_doubt(row: Row, num_draws: int) -> list[TokenLogprobs]:
    """Logprobs of a target with probability 1 for its tokens, if the row asks for them."""
    if row.num_top is None:
        return []
    return [TokenLogprobs(0.0, TokenIds(range(row.num_top)), [0.0] * row.num_top)] * num_draws


class Gate:
    """Stops a model's thread until the test releases it. Open at first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._permits = math.inf
        self._is_held = False

    def shut(self) -> None:
        """Stops the thread at its next step."""
        self._set(0)

    def let(self, num_steps: int = 1) -> None:
        """Releases `num` more steps."""
        self._set(self._permits + num_steps)

    def open(self) -> None:
        self._set(math.inf)

    async def held(self) -> None:
        """Returns when a step is stopped."""
        await asyncio.to_thread(self._wait_until_held)

    def pass_through(self) -> None:
        """Runs in the model's thread."""
        with self._changed:
            self._is_held = self._permits < 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._permits >= 1, WAIT_S), "nobody opens the gate"
            self._is_held = False
            self._permits -= 1

    def _wait_until_held(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._is_held, WAIT_S), "no step comes to the gate"

    def _set(self, permits: float) -> None:
        with self._changed:
            self._permits = permits
            self._is_held = self._is_held and permits < 1
            self._changed.notify_all()


class FakeCache:
    """The tokens whose keys and values a real cache would hold."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.text: list[int] = []

    @property
    def length(self) -> int:
        return len(self.text)

    def feed(self, token_ids: Sequence[int], start: int) -> None:
        if not token_ids or not 0 <= start <= self.length or start + len(token_ids) > self.capacity:
            raise ValueError(f"{len(token_ids)} tokens at {start} into {self.length} of {self.capacity}")
        if max(token_ids) >= VOCABULARY:
            raise ValueError(f"token {max(token_ids)} is outside the vocabulary")
        self.text[start:] = token_ids

    def copy(self, prefix: Prefix) -> None:
        self.text = list(prefix.cache.text[: prefix.length])  # type: ignore[attr-defined]

    def take_over(self, prefix: DraftPrefix) -> None:
        """As Graph.copy: what is moved is gone from where it was."""
        source = cast(FakeCache, prefix.cache)
        if prefix.is_moved and source.length:
            self.text, source.text = source.text[: prefix.length], []
        elif not prefix.is_moved:
            assert prefix.start <= self.length, "a gap before the prefix"
            assert prefix.length <= source.length, "a prefix that is not there"
            self.text[prefix.start :] = source.text[prefix.start : prefix.length]


@dataclass
class FakeTarget:
    """A TargetModel whose draws are `next_token` after `pass_s`. A row that feeds `poison` fails its pass."""

    name: str = "fake"
    fingerprint: str = "fake-numerics"
    vocab_size: int = VOCABULARY
    max_context: int = MAX_CONTEXT
    pass_s: float = 0.0
    poison: int | None = None
    gate: Gate = field(default_factory=Gate)
    passes: list[list[Row]] = field(default_factory=list)  # all passes that were started

    def new_cache(self, capacity: int) -> FakeCache:
        return FakeCache(capacity)

    def step(self, rows: Sequence[Row]) -> list[Drawn]:
        self.passes.append(list(rows))
        self.gate.pass_through()
        time.sleep(self.pass_s)
        assert len({id(row.cache) for row in rows}) == len(rows), "two rows share a cache"
        if any(self.poison in row.token_ids for row in rows):
            raise RuntimeError("poisoned")
        drawn = [self._draws(row) for row in rows]
        return [
            Drawn(ids, no_doubt(row, len(ids)), scored=no_doubt(row, len(row.scored_ids)))
            for row, ids in zip(rows, drawn, strict=True)
        ]

    def _draws(self, row: Row) -> list[int]:
        row.cache.feed(row.token_ids, row.start)
        text, first = row.cache.text, row.cache.length - row.num_draws
        return [next_token(text[: end + 1], row.sampling.seed) for end in range(first, row.cache.length)]


def fake_engine(model: FakeTarget, kv_tokens: int = 32768) -> TorchEngine:
    """The built-in engine over a model that computes nothing."""
    return TorchEngine(cast(TargetModel, model), kv_tokens)


@dataclass
class FakeDraft:
    """A DraftModel that guesses `next_token` at positions for which `is_right` holds, and another token elsewhere.

    logit: the guess is e^logit times as probable as any other token.
    """

    name: str = "fake-draft"
    vocab_size: int = VOCABULARY
    max_context: int = MAX_CONTEXT
    max_rows: int = 16
    kv_bytes: int = 4096
    num_nodes: dict[str, int] = field(default_factory=lambda: {"OpenVINO": 90, "CPU": 10})
    is_right: Callable[[int], bool] = lambda position: True
    logit: Callable[[int], float] = lambda position: 1.0
    max_caches: int = sys.maxsize
    poison: int | None = None
    gate: Gate = field(default_factory=Gate)
    steps: list[list[tuple[int, int]]] = field(
        default_factory=list
    )  # [steps][rows] first token of the text, tokens fed

    def new_cache(self, capacity: int) -> FakeCache:
        if not 1 <= capacity <= self.max_context:
            raise ValueError(f"capacity {capacity} is not in 1..{self.max_context}")
        return FakeCache(capacity)

    def num_caches(self, num_used: int, length: int) -> int:
        return max(num_used, self.max_caches)

    def step(self, rows: Sequence[DraftRow]) -> list[np.ndarray]:
        self.gate.pass_through()
        assert 1 <= len(rows) <= self.max_rows
        assert len(rows) == 1 or all(len(row.token_ids) == 1 for row in rows)
        assert len({id(row.cache) for row in rows}) == len(rows), "two rows share a cache"
        caches = [cast(FakeCache, row.cache) for row in rows]
        for cache, row in zip(caches, rows, strict=True):
            if row.prefix is not None:
                cache.take_over(row.prefix)
            cache.feed(row.token_ids, row.start)
        self.steps.append([(cache.text[0], len(row.token_ids)) for cache, row in zip(caches, rows, strict=True)])
        if any(self.poison in row.token_ids for row in rows):
            raise RuntimeError("poisoned")
        return [self._logits(cache) for cache in caches]

    def _logits(self, cache: FakeCache) -> np.ndarray:
        right = next_token(cache.text)
        logits = np.zeros(self.vocab_size, dtype=np.float32)
        logits[right if self.is_right(cache.length) else wrong(right)] = self.logit(cache.length)
        return logits
