"""The built-in engine: contexts over `TargetModel`, with reservations and prefix sharing.

Invariant: the reservations of open contexts and of caches kept for their prefixes never exceed `kv_tokens`. Kept caches
give way. A context waits only for older ones, so no two wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from services.cloud_verifier.engine import Drawn, EngineInfo, OutOfMemory, StepRow, StepTime
from services.cloud_verifier.settings import VerifierSettings
from services.cloud_verifier.torch_engine.kv import KvCache, Prefix
from services.cloud_verifier.torch_engine.model import Row, TargetModel, follow_target, load_target
from services.cloud_verifier.torch_engine.prefixes import MIN_TOKENS, PrefixCache, num_common
from shared.policies.batching import KV_STEP, round_to_kv_step
from shared.protocol.messages import Sampling, TokenIds

WARM_UP_TOKENS = (1, 2, 4, 8, 16, 32, 64)
NO_MEMORY = (MemoryError, OSError, torch.OutOfMemoryError)  # of Python, of mmap, of a GPU


@dataclass(slots=True, eq=False)
class TorchContext:
    """A cache, and what of its beginning is copied from others."""

    cache: KvCache
    scope: str | None
    token_ids: NDArray[np.int64]  # the text, as far as it is known to be committed
    num_computed: int = 0  # leading token_ids whose keys and values the cache holds, or will after the copy
    num_shared: int | None = 0
    prefix: Prefix | None = None  # the next step copies it
    source: TorchContext | None = None  # an older context that computes a prefix of the same text right now

    @property
    def capacity(self) -> int:
        return self.cache.capacity


class TorchEngine:
    """`services.cloud_verifier.engine.Engine` in this process. `kv_tokens`: capacity of the KV cache."""

    def __init__(self, model: TargetModel, kv_tokens: int) -> None:
        largest = kv_tokens // KV_STEP * KV_STEP
        self.info = EngineInfo(model.fingerprint, model.vocab_size, model.max_context, kv_tokens, largest)
        self.num_shared_tokens = 0
        self.prefixes = PrefixCache()
        self._model = model
        self._contexts: dict[TorchContext, None] = {}  # open ones, oldest first

    @property
    def free_kv_tokens(self) -> int:
        return self.info.kv_tokens - sum(context.capacity for context in self._contexts)

    def open(self, token_ids: Sequence[int], capacity: int, scope: str | None) -> TorchContext | None:
        reserved = round_to_kv_step(capacity)
        left = self.free_kv_tokens - reserved
        if left < 0:
            return None
        text = np.array(token_ids[:-1], dtype=np.int64)  # the newest token must be fed
        kept = self._kept(scope, text)
        self.prefixes.shrink(left)
        try:
            cache = self._model.new_cache(reserved)
        except NO_MEMORY as error:
            raise OutOfMemory(f"no memory for a KV cache of {reserved} tokens") from error
        context = TorchContext(cache, scope, text)
        self._contexts[context] = None
        self._find_prefix(context, kept)
        return context

    def share(self, context: TorchContext) -> None:
        source = context.source
        if source is None:
            return
        if source not in self._contexts:
            self._find_prefix(context, self._kept(context.scope, context.token_ids))
            return
        common = num_common(source.token_ids, context.token_ids)
        if source.num_computed >= common:  # what the source has yet to copy is not in its own cache
            self._inherit(context, Prefix(source.prefix.cache if source.prefix else source.cache, common))

    def close(self, context: TorchContext, token_ids: Sequence[int]) -> None:
        del self._contexts[context]
        if context.scope is not None and context.prefix is None:
            self.prefixes.keep(context.scope, token_ids, context.cache, context.capacity)

    @torch.inference_mode()
    def step(self, rows: Sequence[StepRow[TorchContext]]) -> list[Drawn]:
        for row in rows:
            context = row.context
            if context.prefix is not None:
                context.cache.copy(context.prefix)
                context.prefix = None
        drawn = self._model.step(
            [Row(r.context.cache, r.start, r.token_ids, r.num_draws, r.sampling, r.history, r.num_top) for r in rows]
        )
        for row in rows:
            _commit(row)
        return drawn

    def warm_up(self) -> list[StepTime]:
        """Each size once for the kernels and once for the clock."""
        cache, times = self._model.new_cache(max(WARM_UP_TOKENS)), []
        for num_tokens in WARM_UP_TOKENS:
            row = Row(cache, 0, TokenIds([0] * num_tokens), num_tokens, Sampling())
            self._model.step([row])
            started = time.perf_counter()
            self._model.step([row])
            times.append(StepTime(1, num_tokens, 0, (time.perf_counter() - started) * 1e3))
        return times

    def probe(self) -> None:
        self._model.step([Row(self._model.new_cache(1), 0, TokenIds([0]), 1, Sampling())])

    def _find_prefix(self, context: TorchContext, kept: Prefix | None) -> None:
        """Chooses what has most in common with the context's text: a kept cache, or an older context of its scope."""
        source, most = None, max(MIN_TOKENS - 1, kept.length if kept else 0)
        for other in self._contexts:
            if other is context or context.scope is None:
                break
            if other.scope == context.scope and (common := num_common(other.token_ids, context.token_ids)) > most:
                source, most = other, common
        if source is not None:
            context.source, context.num_shared = source, None
        else:
            self._inherit(context, kept)

    def _kept(self, scope: str | None, text: NDArray[np.int64]) -> Prefix | None:
        return self.prefixes.find(scope, text) if scope is not None else None

    def _inherit(self, context: TorchContext, prefix: Prefix | None) -> None:
        context.source, context.prefix = None, prefix
        context.num_shared = context.num_computed = prefix.length if prefix else 0
        self.num_shared_tokens += context.num_computed


def _commit(row: StepRow[TorchContext]) -> None:
    """Notes what the step computed of committed text. Guesses count once a later row starts behind them.

    A row that draws reaches the end of the text.
    """
    context, end = row.context, row.start + len(row.token_ids) - max(0, row.num_draws - 1)
    fed = np.array(row.token_ids[: end - row.start], dtype=np.int64)
    rest = () if row.num_draws else context.token_ids[end:]
    context.token_ids = np.concatenate([context.token_ids[: row.start], fed, rest])
    context.num_computed = end


def load_model(settings: VerifierSettings) -> TargetModel:
    """The target model that the settings name."""
    return load_target(settings.target, settings.device, settings.dtype, settings.num_threads or None)


def load_engine(settings: VerifierSettings) -> TorchEngine:
    return TorchEngine(load_model(settings), settings.kv_tokens)


def follow_model(settings: VerifierSettings) -> None:
    """The work of a rank other than 0: computes its part of the model until rank 0 ends."""
    follow_target(settings.target, settings.device, settings.dtype, settings.num_threads or None)
