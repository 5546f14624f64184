"""The built-in engine: contexts over `TargetModel`, with reservations and prefix sharing.

Invariant: reservations of open contexts and of the prefix cache never exceed `kv_tokens`; the prefix cache shrinks for
new contexts. A context waits only for older ones, so there is no deadlock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from services.cloud_verifier.engine import Computed, Drawn, EngineInfo, OutOfMemory, StepRow, StepTime
from services.cloud_verifier.settings import VerifierSettings
from services.cloud_verifier.torch_engine.kv import KvCache, Prefix
from services.cloud_verifier.torch_engine.model import Row, TargetModel, load_target, pick_device
from services.cloud_verifier.torch_engine.prefixes import MIN_TOKENS, PrefixCache, num_common
from shared.policies.batching import KV_STEP, round_to_kv_step
from shared.protocol.guesses import common_prefix
from shared.protocol.messages import MAX_WINDOW, Open, Sampling, TokenIds
from shared.protocol.sampling import History, is_adjusted

WARM_UP_TOKENS = (1, 2, 4, 8, 16, 32, 64)
NO_MEMORY = (MemoryError, OSError, torch.OutOfMemoryError)  # of Python, mmap, a GPU

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class TorchContext:
    """A session's KV cache and the state of its prefix."""

    cache: KvCache
    request: Open
    token_ids: NDArray[np.int64]  # committed text, as far as known
    num_computed: int = 0  # leading token_ids in the KV cache, those in `prefix` included
    num_shared: int | None = 0
    prefix: Prefix | None = None  # to be copied by the next step
    source: TorchContext | None = None  # an older context that is computing a prefix of the same text

    @property
    def capacity(self) -> int:
        return self.cache.capacity

    @property
    def scope(self) -> str | None:
        return self.request.cache_scope


class TorchEngine:
    """`services.cloud_verifier.engine.Engine` in this process. `kv_tokens`: capacity of the KV cache."""

    def __init__(self, model: TargetModel, kv_tokens: int) -> None:
        largest = kv_tokens // KV_STEP * KV_STEP
        self.info = EngineInfo(model.fingerprint, model.vocab_size, model.max_context, kv_tokens, largest, MAX_WINDOW)
        self.num_shared_tokens = 0
        self.num_preemptions = 0  # KV cache is reserved
        self.prefixes = PrefixCache()
        self._model = model
        self._contexts: dict[TorchContext, None] = {}  # open ones, oldest first

    @property
    def free_kv_tokens(self) -> int:
        return self.info.kv_tokens - sum(context.capacity for context in self._contexts)

    def open(self, request: Open, token_ids: Sequence[int]) -> TorchContext | None:
        reserved = round_to_kv_step(len(request.prompt_ids) + request.max_tokens)
        left = self.free_kv_tokens - reserved
        if left < 0:
            return None
        text = np.array(token_ids[:-1], dtype=np.int64)  # the newest token must be fed
        kept = self._find_kept(request.cache_scope, text)
        self.prefixes.shrink(left)
        try:
            cache = self._model.new_cache(reserved)
        except NO_MEMORY as error:
            raise OutOfMemory(f"no memory for a KV cache of {reserved} tokens") from error
        context = TorchContext(cache, request, text)
        self._contexts[context] = None
        self._find_prefix(context, kept)
        return context

    def share(self, context: TorchContext) -> None:
        source = context.source
        if source is None:
            return
        if source not in self._contexts:
            self._find_prefix(context, self._find_kept(context.scope, context.token_ids))
            return
        common = num_common(source.token_ids, context.token_ids)
        if source.num_computed >= common:  # the source may still have to copy its own prefix
            self._use_prefix(context, Prefix(source.prefix.cache if source.prefix else source.cache, common))

    def close(self, context: TorchContext, token_ids: Sequence[int]) -> None:
        del self._contexts[context]
        if context.scope is not None and context.prefix is None:
            self.prefixes.keep(context.scope, token_ids, context.cache, context.capacity)

    @torch.inference_mode()
    def step(self, rows: Sequence[StepRow[TorchContext]]) -> list[Computed]:
        for row in rows:
            context = row.context
            if context.prefix is not None:
                context.cache.copy(context.prefix)
                context.prefix = None
        drawn = self._model.step([_model_row(row) for row in rows])
        return [_commit(row, each) for row, each in zip(rows, drawn, strict=True)]

    def warm_up(self) -> list[StepTime]:
        """Runs each size twice: the first run compiles kernels, the second is timed."""
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

    def shutdown(self) -> None:
        """There is nothing to end."""

    def _find_prefix(self, context: TorchContext, kept: Prefix | None) -> None:
        """Chooses the longest common prefix: of the kept cache, or of an older context of the same scope."""
        source, most = None, max(MIN_TOKENS - 1, kept.length if kept else 0)
        for other in self._contexts:
            if other is context or context.scope is None:
                break
            if other.scope == context.scope and (common := num_common(other.token_ids, context.token_ids)) > most:
                source, most = other, common
        if source is not None:
            context.source, context.num_shared = source, None
        else:
            self._use_prefix(context, kept)

    def _find_kept(self, scope: str | None, text: NDArray[np.int64]) -> Prefix | None:
        return self.prefixes.find(scope, text) if scope is not None else None

    def _use_prefix(self, context: TorchContext, prefix: Prefix | None) -> None:
        context.source, context.prefix = None, prefix
        context.num_shared = context.num_computed = prefix.length if prefix else 0
        self.num_shared_tokens += context.num_computed


def _model_row(row: StepRow[TorchContext]) -> Row:
    request, history = row.context.request, None
    if row.num_draws and is_adjusted(request.sampling, request.min_tokens):
        output_ids = _text(row)[len(request.prompt_ids) :].tolist()
        history = History(request.prompt_ids, output_ids, request.stop_ids, request.min_tokens)
    cache, sampling, num_top = row.context.cache, request.sampling, request.logprobs
    return Row(cache, row.start, row.token_ids, row.num_draws, sampling, history, num_top)


def _text(row: StepRow[TorchContext]) -> NDArray[np.int64]:
    """The committed text up to the end of the row, without its guesses."""
    num_committed = len(row.token_ids) - max(0, row.num_draws - 1)
    return np.concatenate([row.context.token_ids[: row.start], np.array(row.token_ids[:num_committed], np.int64)])


def _commit(row: StepRow[TorchContext], drawn: Drawn) -> Computed:
    """Updates the committed text, to which guesses belong that equal their draws.

    A row with draws ends at the end of the text.
    """
    context, text = row.context, _text(row)
    length, guesses = len(text), row.token_ids[len(text) - row.start :]
    rest = guesses[: common_prefix(guesses, drawn.token_ids)] if row.num_draws else context.token_ids[length:]
    context.token_ids = np.concatenate([text, np.array(rest, np.int64)])
    context.num_computed = length + len(rest) if row.num_draws else length
    return Computed(len(row.token_ids), length, drawn)


def load_model(settings: VerifierSettings) -> TargetModel:
    return load_target(settings.target, settings.device, settings.dtype, settings.num_threads or None)


def load_engine(settings: VerifierSettings) -> TorchEngine:
    if pick_device(settings.device).type == "cuda":
        log.warning("the built-in engine is made for CPUs, on a GPU use vLLM: --engine vllm", device=settings.device)
    return TorchEngine(load_model(settings), settings.kv_tokens)
