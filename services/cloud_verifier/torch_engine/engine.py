"""The built-in engine: contexts over `TargetModel`, with reservations and prefix sharing.

Invariant: reservations of open contexts and of the prefix cache never exceed `kv_tokens`; the prefix cache shrinks for
contexts that open or grow. A context waits only for older ones, so there is no deadlock.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
import torch

from services.cloud_verifier.engine import Computed, Drawn, EngineInfo, OutOfMemory, StepRow, StepTime
from services.cloud_verifier.grammars import load_grammars
from services.cloud_verifier.settings import VerifierSettings
from services.cloud_verifier.torch_engine.kv import KvCache, Prefix
from services.cloud_verifier.torch_engine.model import Row, TargetModel, load_target, pick_device
from services.cloud_verifier.torch_engine.prefixes import MIN_TOKENS, Key, PrefixCache, SortedTexts, num_common
from services.cloud_verifier.torch_engine.text import Text
from shared.grammar.grammars import Grammars
from shared.grammar.running_grammar import rule_of
from shared.policies.kv_cache import KV_STEP, likely_kv_tokens, round_to_kv_step
from shared.protocol.guesses import common_prefix
from shared.protocol.messages import MAX_WINDOW, Open, Sampling, TokenIds
from shared.protocol.running_adjustment import AnswerRule, RunningAdjustment

WARM_UP_TOKENS = (1, 2, 4, 8, 16, 32, 64)
NO_MEMORY = (MemoryError, OSError, torch.OutOfMemoryError)  # of Python, mmap, a GPU

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class TorchContext:
    """A session's KV cache and the state of its prefix."""

    number: int  # in the order of opening
    cache: KvCache
    request: Open
    text: Text  # as far as known
    key: Key | None  # of the text at the opening; None without a scope
    num_computed: int = 0  # leading tokens of the text in the KV cache, those in `prefix` included
    rule: AnswerRule | None = None  # of the request's grammar
    running: RunningAdjustment | None = None  # from the first draw on, if scores differ from logits
    num_shared: int | None = 0
    prefix: Prefix | None = None  # to be copied by the next step
    source: TorchContext | None = None  # an older context that is computing a prefix of the same text
    num_awaited: int = 0  # length of that prefix

    @property
    def capacity(self) -> int:
        return self.cache.capacity

    @property
    def filled(self) -> KvCache:
        """The cache that holds the computed tokens, also while they are yet to be copied."""
        return self.prefix.cache if self.prefix else self.cache


class TorchEngine:
    """`services.cloud_verifier.engine.Engine` in this process. `kv_tokens`: capacity of the KV cache."""

    def __init__(self, model: TargetModel, kv_tokens: int, grammars: Grammars | None = None) -> None:
        largest = kv_tokens // KV_STEP * KV_STEP
        self.info = EngineInfo(
            model.fingerprint, model.vocab_size, model.max_context, kv_tokens, largest, MAX_WINDOW, scores_text=True
        )
        self.num_shared_tokens = 0
        self.num_preemptions = 0  # it takes no context away by itself
        self.grammars = grammars or Grammars()
        self.prefixes = PrefixCache()
        self._model = model
        self._numbers = itertools.count()
        self._contexts: dict[TorchContext, None] = {}  # open ones, oldest first
        self._texts: SortedTexts[TorchContext] = SortedTexts()  # of open contexts with a scope, at their opening

    @property
    def free_kv_tokens(self) -> int:
        return self.info.kv_tokens - sum(context.capacity for context in self._contexts)

    def open(self, request: Open, token_ids: Sequence[int]) -> TorchContext | None:
        num_left = len(request.prompt_ids) + request.max_tokens - len(token_ids)
        reserved = likely_kv_tokens(len(token_ids), num_left)
        left = self.free_kv_tokens - reserved
        if left < 0:
            return None
        text = Text(token_ids[:-1], reserved)  # the newest token must be fed
        # A prefix that is not computed has no logprobs.
        scope = None if request.prompt_logprobs else request.cache_scope
        key = None if scope is None else Key.of(scope, text.ids)
        kept = self._find_kept(key)
        self.prefixes.shrink(left)
        rule = rule_of(request, self.grammars, self.info.vocab_size)
        context = TorchContext(next(self._numbers), self._new_cache(reserved), request, text, key, rule=rule)
        self._find_prefix(context, kept)
        self._contexts[context] = None
        if key is not None:
            self._texts.add(key, context)
        return context

    def grow(self, context: TorchContext, num_tokens: int) -> bool:
        """The next step copies what the context holds. Until then the old cache stays in memory."""
        left = self.free_kv_tokens + context.capacity - round_to_kv_step(num_tokens)
        if left < 0:
            return False
        self.prefixes.shrink(left)
        cache = self._new_cache(num_tokens)
        if context.num_computed:
            context.prefix = Prefix(context.filled, context.num_computed)
        context.cache = cache
        context.text.grow(cache.capacity)
        return True

    def share(self, context: TorchContext) -> None:
        source = context.source
        if source is None:
            return
        if source not in self._contexts:
            self._find_prefix(context, self._find_kept(context.key))
        elif source.num_computed >= context.num_awaited:
            common = min(num_common(source.text.ids, context.text.ids), source.num_computed)
            self._use_prefix(context, Prefix(source.filled, common))

    def close(self, context: TorchContext, token_ids: Sequence[int]) -> None:
        del self._contexts[context]
        if context.key is None:
            return
        self._texts.remove(context.key, context)
        if context.prefix is None:
            self.prefixes.keep(Key.of(context.key.scope, token_ids), context.cache, context.capacity)

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

    def _new_cache(self, num_tokens: int) -> KvCache:
        try:
            return self._model.new_cache(num_tokens)
        except NO_MEMORY as error:
            raise OutOfMemory(f"no memory for a KV cache of {num_tokens} tokens") from error

    def _find_prefix(self, context: TorchContext, kept: Prefix | None) -> None:
        """Chooses the longest common prefix: of the kept cache, or of an older context of the same scope."""
        source, most = None, max(MIN_TOKENS - 1, kept.length if kept else 0)
        for other in self._older(context):
            common = num_common(other.text.ids, context.text.ids)
            if common > most:
                source, most = other, common
        if source is None:
            self._use_prefix(context, kept)
            return
        while (older := source.source) and num_common(older.text.ids, context.text.ids) >= most:
            source = older  # does not wait for the one that is waited for
        context.source, context.num_shared, context.num_awaited = source, None, most

    def _older(self, context: TorchContext) -> list[TorchContext]:
        """The older contexts of the scope whose texts have most in common with the context's, oldest first."""
        if context.key is None:
            return []
        beside = self._texts.beside(context.key, lambda other: other.number < context.number)
        return sorted(beside, key=lambda other: other.number)

    def _find_kept(self, key: Key | None) -> Prefix | None:
        return None if key is None else self.prefixes.find(key)

    def _use_prefix(self, context: TorchContext, prefix: Prefix | None) -> None:
        context.source, context.prefix = None, prefix
        context.num_shared = context.num_computed = prefix.length if prefix else 0
        self.num_shared_tokens += context.num_computed


def _model_row(row: StepRow[TorchContext]) -> Row:
    context, request = row.context, row.context.request
    if context.running is None and row.num_draws:
        context.running = RunningAdjustment.of(request, context.rule)
    if context.running is not None:
        _follow(context.running, row)
    drawing = request.sampling, context.running, request.logprobs
    return Row(context.cache, row.start, row.token_ids, row.num_draws, *drawing, row.scored_ids)


def _follow(running: RunningAdjustment, row: StepRow[TorchContext]) -> None:
    """Brings the adjustment to the row: up to its guesses if it draws."""
    running.roll_back(row.start)
    if row.num_draws:
        running.extend(row.context.text.ids[running.length : row.start].tolist())
        running.extend(row.token_ids[running.length - row.start : _num_committed(row)])


def _num_committed(row: StepRow[TorchContext]) -> int:
    """The row's tokens that are no guesses."""
    return len(row.token_ids) - max(0, row.num_draws - 1)


def _commit(row: StepRow[TorchContext], drawn: Drawn) -> Computed:
    """Updates the committed text, to which guesses belong that equal their draws.

    A row with draws ends at the end of the text.
    """
    context, num_committed = row.context, _num_committed(row)
    num_accepted = common_prefix(row.token_ids[num_committed:], drawn.token_ids)
    length = row.start + num_committed
    context.text.write(row.start, row.token_ids[: num_committed + num_accepted], is_end=row.num_draws > 0)
    context.num_computed = length + num_accepted
    return Computed(len(row.token_ids), length, drawn)


def load_model(settings: VerifierSettings) -> TargetModel:
    return load_target(settings.target, settings.device, settings.dtype, settings.num_threads or None)


def load_engine(settings: VerifierSettings) -> TorchEngine:
    if pick_device(settings.device).type == "cuda":
        log.warning("the built-in engine is made for CPUs, on a GPU use vLLM: --engine vllm", device=settings.device)
    model = load_model(settings)
    return TorchEngine(model, settings.kv_tokens, load_grammars(settings.target, model.vocab_size))
