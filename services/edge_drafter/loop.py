"""The drafting loop: draft -> send -> commit, one model step at a time, over all sessions in turn.

Invariant: a rollback is applied between draft steps only; a guess from a step begun before it is thrown away (the state
machine sees to it), so the cache always holds what it says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from services.edge_drafter.guess import Guess, Question
from services.edge_drafter.metrics import DrafterMetrics
from services.edge_drafter.model import DraftCache, DraftModel
from services.edge_drafter.sessions import DraftSessions, SessionSlot
from shared.protocol.drafter_session import DraftStep

log = structlog.get_logger(__name__)

WARM_UP_STEPS = 4
NO_GUESS = Guess(0)  # of a step that only catches up


class DraftLoop:
    """Gives the draft model to the sessions that want a step; `wake` tells it that one may."""

    def __init__(
        self,
        model: DraftModel,
        table: DraftSessions,
        feed_tokens: int,
        metrics: DrafterMetrics,
        send: Callable[[SessionSlot], None],
        fail: Callable[[SessionSlot], None],
    ) -> None:
        self._model = model
        self._table = table
        self._feed_tokens = feed_tokens
        self._metrics = metrics
        self._send = send
        self._fail = fail
        self._ready = asyncio.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="draft-model")
        self.step_ms = 0.0
        self.prefill_ms = 0.0  # per token

    def wake(self) -> None:
        """Something changed: a session may want a step."""
        self._ready.set()

    async def run(self) -> None:
        """Runs until cancelled; a running step is waited for."""
        try:
            while True:
                slot = self._table.next_turn()
                if slot is None:
                    self._ready.clear()
                    await self._ready.wait()
                else:
                    await self._draft(slot)
        finally:
            self._executor.shutdown(wait=True)

    async def warm_up(self) -> None:
        """Runs the model once for each kind of step, so that heartbeats tell its speed from the first one on."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._measure)

    def _measure(self) -> None:
        """In the model's thread."""
        num_tokens = min(self._feed_tokens, self._model.max_context - WARM_UP_STEPS)
        cache = self._model.new_cache(num_tokens + WARM_UP_STEPS)
        for start, length in [(0, num_tokens), (0, num_tokens), *((num_tokens + i, 1) for i in range(WARM_UP_STEPS))]:
            started = time.perf_counter()
            self._model.feed(cache, [0] * length, start)
            self._observe((time.perf_counter() - started) * 1e3, length)

    async def _draft(self, slot: SessionSlot) -> None:
        state = slot.state
        step = state.begin_step(self._feed_tokens)
        compute = partial(self._compute, slot.cache, step, Question.behind(state) if step.draws else None)
        started = time.perf_counter()
        try:
            guess = await asyncio.get_running_loop().run_in_executor(self._executor, compute)
        except Exception:
            log.exception("draft step failed", session=state.session_id)
            self._metrics.failed_steps.inc()
            self._fail(slot)
            return
        self._observe((time.perf_counter() - started) * 1e3, len(step.fed_ids))
        if state.end_step(step, guess.token_id, guess.confidence):
            self._metrics.drafted.inc()
            self._metrics.unsure.inc(state.is_unsure)
        self._send(slot)

    def _compute(self, cache: DraftCache, step: DraftStep, question: Question | None) -> Guess:
        """In the model's thread: the guess for the position behind the fed tokens, where one is asked for."""
        logits = self._model.feed(cache, step.fed_ids, step.start)
        return question.answer(logits) if question else NO_GUESS

    def _observe(self, elapsed_ms: float, num_tokens: int) -> None:
        self._metrics.step_seconds.observe(elapsed_ms / 1e3)
        if num_tokens >= self._feed_tokens:
            per_token = elapsed_ms / num_tokens
            self.prefill_ms = per_token if self.prefill_ms == 0 else 0.8 * self.prefill_ms + 0.2 * per_token
        elif num_tokens <= 2:
            self.step_ms = elapsed_ms if self.step_ms == 0 else 0.9 * self.step_ms + 0.1 * elapsed_ms
