"""The engine on vLLM: one vLLM request for each context.

Invariant: before each step the text of a context's request is the context's text, or the request is added again. vLLM
may take a request's KV cache at any time; the next row then computes again what the prefix cache does not hold, and
nobody outside notices. Only the thread that holds the lock calls vLLM.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from vllm import EngineArgs

from services.cloud_verifier.engine import Computed, Drawn, EngineInfo, StepRow, StepTime
from services.cloud_verifier.grammars import load_grammars
from services.cloud_verifier.settings import VerifierSettings
from services.cloud_verifier.vllm_engine.core import MAX_GUESSES, Core, Stepped
from services.cloud_verifier.vllm_engine.fingerprint import fingerprint_of
from services.cloud_verifier.vllm_engine.scheduler import Planned
from services.cloud_verifier.vllm_engine.worker import DrawRule, logprobs_of
from shared.grammar.grammars import Grammars
from shared.grammar.running_grammar import RunningGrammar, rule_of
from shared.protocol.messages import NO_TOKENS, Open, Sampling, TokenIds

log = structlog.get_logger(__name__)

WARM_UP_TOKENS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(slots=True, eq=False)
class VllmContext:
    """A session's text and its vLLM request, which is None while vLLM holds no KV cache of it."""

    number: int  # in the order of opening
    request: Open
    capacity: int
    text: list[int]  # as far as known, and as the request has it
    grammar: RunningGrammar | None  # of a prefix of the answer
    request_id: str | None = None
    is_closed: bool = False
    num_shared: int | None = 0

    @property
    def rule(self) -> DrawRule:
        request = self.request
        return DrawRule(
            sampling=request.sampling,
            num_prompt=len(request.prompt_ids),
            stop_ids=request.stop_ids,
            min_tokens=request.min_tokens,
            num_top=request.logprobs,
            grammar=request.grammar,
        )

    def extra(self, row: StepRow[VllmContext]) -> list[int]:
        """The row's forced tokens that are new to vLLM: it takes them as guesses, and its draws can only equal them."""
        return _committed(row)[len(self.text) - row.start :] if row.num_draws else []

    def forced(self) -> list[int]:
        """The only tokens that may follow the text; not with logprobs, which they would lack."""
        if self.grammar is None or self.request.logprobs is not None:
            return []
        self.grammar.extend(self.text[len(self.request.prompt_ids) + self.grammar.length :])
        return self.grammar.forced()

    @property
    def salt(self) -> str:
        """Requests of one salt share cached prefixes. Without a scope a context shares only with itself."""
        scope = self.request.cache_scope
        return f"{self.number}" if scope is None else f"scope {scope}"


class VllmEngine:
    """`services.cloud_verifier.engine.Engine` on vLLM."""

    def __init__(self, core: Core, fingerprint: str, grammars: Grammars | None = None) -> None:
        largest = min(core.max_context, core.kv_tokens)
        self.info = EngineInfo(fingerprint, core.vocab_size, core.max_context, core.kv_tokens, largest, MAX_GUESSES)
        self.num_shared_tokens = 0
        self.num_preemptions = 0
        self.grammars = grammars or Grammars()
        self._core = core
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._contexts: dict[str, VllmContext] = {}  # by request id
        self._closed: deque[VllmContext] = deque()

    @property
    def free_kv_tokens(self) -> int:
        return self._core.free_kv_tokens

    def open(self, request: Open, token_ids: Sequence[int]) -> VllmContext | None:
        """KV cache is not reserved. A context opens if its text so far fits, or if no other holds any."""
        if self._contexts and self.free_kv_tokens < len(token_ids) + self._core.block_size:
            return None
        capacity = min(self.info.max_context, self.info.largest_context)
        grammar = rule_of(request, self.grammars, self.info.vocab_size)
        return VllmContext(next(self._numbers), request, capacity, list(token_ids), grammar)

    def grow(self, context: VllmContext, num_tokens: int) -> bool:
        """A context may have any length from the start: vLLM preempts when its memory is full."""
        return True

    def share(self, context: VllmContext) -> None:
        """vLLM finds cached prefixes itself when a request begins."""

    def close(self, context: VllmContext, token_ids: Sequence[int]) -> None:
        context.is_closed = True
        self._closed.append(context)
        self._forget_closed()

    def step(self, rows: Sequence[StepRow[VllmContext]]) -> list[Computed]:
        with self._lock:
            try:
                computed = self._step(rows)
            except Exception:
                self._reset()
                raise
        self._closed.extend(row.context for row in rows if row.context.is_closed)  # after the pass was formed
        self._forget_closed()
        return computed

    def warm_up(self) -> list[StepTime]:
        """Computes texts of growing size, each twice: the first run may compile kernels, the second is timed."""
        times = []
        for num_tokens in WARM_UP_TOKENS:
            self._compute_once(num_tokens)
            started = time.perf_counter()
            self._compute_once(num_tokens)
            times.append(StepTime(1, num_tokens, 0, (time.perf_counter() - started) * 1e3))
        return times

    def probe(self) -> None:
        self._compute_once(1)

    def shutdown(self) -> None:
        with self._lock:
            self._core.shutdown()

    def _step(self, rows: Sequence[StepRow[VllmContext]]) -> list[Computed]:
        for row in rows:
            self._renew(row)
        stepped = self._run(rows)
        while not any(each.num_tokens for each in stepped):
            self._evict_other(rows)
            stepped = self._run(rows)
        return [self._computed(row, each) for row, each in zip(rows, stepped, strict=True)]

    def _run(self, rows: Sequence[StepRow[VllmContext]]) -> list[Stepped]:
        """One step of vLLM. Contexts that it preempts are without a request afterwards."""
        plan = {
            self._begin(row.context): Planned(len(row.token_ids), [*row.context.extra(row), *_guesses(row)])
            for row in rows
        }
        stepped = self._core.step(plan)
        preempted = [self._contexts[request_id] for request_id in self._core.preempted_ids]
        self.num_preemptions += len(preempted)
        self._drop(preempted)
        return [stepped[request_id] for request_id in plan]

    def _renew(self, row: StepRow[VllmContext]) -> None:
        """Follows a row whose text differs from the known one, after a pass that the session did not commit."""
        context, fed = row.context, _committed(row)
        end = row.start + len(fed)
        known = context.text[row.start : end]
        is_whole = not row.num_draws or end == len(context.text)
        is_forced = row.num_draws and known == fed[: len(known)] and end > len(context.text) > row.start
        if (is_whole and known == fed) or (is_forced and context.request_id is not None):
            return
        rest = [] if row.num_draws else context.text[end:]
        context.text = [*context.text[: row.start], *fed, *rest]
        if context.grammar is not None:
            context.grammar.roll_back(0)
        self._drop([context])

    def _begin(self, context: VllmContext) -> str:
        """The id of the context's request, which is added to vLLM if it has none."""
        if context.request_id is None:
            request_id = f"{context.number}-{next(self._numbers)}"
            self._core.add(request_id, context.text, context.rule, context.salt, float(context.number))
            context.request_id = request_id
            self._contexts[request_id] = context
        return context.request_id

    def _computed(self, row: StepRow[VllmContext], stepped: Stepped) -> Computed:
        context, output = row.context, stepped.output
        if stepped.is_gone:
            self._drop([context])
        if output is None:
            return Computed(stepped.num_tokens, stepped.length, Drawn([], []))
        if output.prefill_stats is not None:
            self.num_shared_tokens += output.prefill_stats.num_cached_tokens
        extra, token_ids = context.extra(row), list(output.new_token_ids)
        if token_ids[: len(extra)] != extra[: len(token_ids)]:
            raise RuntimeError(f"vLLM drew {token_ids} where a grammar allows {extra} alone")
        context.text.extend(token_ids)
        drawn, num_top = token_ids[len(extra) :], context.request.logprobs
        logprobs = logprobs_of(output.new_logprobs, num_top) if num_top is not None else []
        forced = context.forced() if drawn else []
        return Computed(stepped.num_tokens, len(context.text) - 1, Drawn(drawn, logprobs, forced))

    def _evict_other(self, rows: Sequence[StepRow[VllmContext]]) -> None:
        """Takes the KV cache of the newest context outside the pass. Raises RuntimeError if there is none."""
        waiting = {row.context for row in rows}
        others = [context for context in self._contexts.values() if context not in waiting]
        if not others:
            raise RuntimeError("vLLM computes none of the requests, and no other request holds KV cache")
        self._drop([max(others, key=lambda context: context.number)])

    def _drop(self, contexts: Sequence[VllmContext]) -> None:
        """Ends the contexts' requests. Their next rows add them again."""
        ids = [context.request_id for context in contexts if context.request_id is not None]
        if not ids:
            return
        self._core.drop(ids)
        for context in contexts:
            self._contexts.pop(context.request_id or "", None)
            context.request_id = None

    def _forget_closed(self) -> None:
        """Drops closed contexts now, or leaves them to the running step, which does so at its end."""
        while self._closed and self._lock.acquire(blocking=False):
            try:
                self._drop([self._closed.popleft() for _ in range(len(self._closed))])
            finally:
                self._lock.release()

    def _reset(self) -> None:
        self._core.reset()
        for context in self._contexts.values():
            context.request_id = None
        self._contexts.clear()

    def _compute_once(self, num_tokens: int) -> None:
        """Computes a text that nobody else has, and forgets it."""
        text = TokenIds([0] * num_tokens)
        context = self.open(Open("0" * 32, 0, None, text, NO_TOKENS, Sampling(), NO_TOKENS, 1), text)
        assert context is not None, "no KV cache is free"
        try:
            self.step([StepRow(context, 0, text, 1)])
        finally:
            self.close(context, text)


def _committed(row: StepRow[VllmContext]) -> list[int]:
    return list(row.token_ids[: len(row.token_ids) - max(0, row.num_draws - 1)])


def _guesses(row: StepRow[VllmContext]) -> list[int]:
    return list(row.token_ids[len(row.token_ids) - row.num_draws + 1 :]) if row.num_draws else []


def load_engine(settings: VerifierSettings, args: EngineArgs) -> VllmEngine:
    """Loads the model. Raises whatever vLLM raises meanwhile."""
    core = Core(args, settings.prefill_threads)
    numerics = core.numerics()
    log.info("vLLM is loaded", **numerics, kv_tokens=core.kv_tokens, max_model_len=core.max_context)
    fingerprint = fingerprint_of(settings.target, settings.model_name, numerics)
    return VllmEngine(core, fingerprint, load_grammars(settings.target, core.vocab_size))
