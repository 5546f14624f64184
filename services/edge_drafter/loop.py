"""The drafting loop: draft -> send -> commit, one model step at a time, over all sessions in turn.

Invariant: a rollback takes effect between draft steps only. The state machine drops the guess of a step that began
before it, so the cache always holds the tokens that the session counts as computed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from services.edge_drafter.guess import Guess, GuessInputs
from services.edge_drafter.metrics import DrafterMetrics
from services.edge_drafter.model import DraftCache, DraftModel
from services.edge_drafter.sessions import DraftSessions, SessionSlot
from shared.protocol.drafter_session import DraftStep

log = structlog.get_logger(__name__)

WARM_UP_STEPS = 4
NO_GUESS = Guess(0)  # of a step without a guess


class DraftLoop:
    """Runs the draft model for the sessions that need a step, in turn."""

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
        """Call it when a session may need a step."""
        self._ready.set()

    async def run(self) -> None:
        """Runs until cancelled, then waits for the running step."""
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
        """Times each kind of step, so that the first heartbeat has its speed."""
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
        compute = partial(self._compute, slot.cache, step, slot.guess_inputs(step))
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

    def _compute(self, cache: DraftCache, step: DraftStep, inputs: GuessInputs | None) -> Guess:
        """Runs in the model's thread. Returns the guess after the fed tokens, or NO_GUESS if none is wanted."""
        logits = self._model.feed(cache, step.fed_ids, step.start)
        return inputs.draw(logits) if inputs else NO_GUESS

    def _observe(self, elapsed_ms: float, num_tokens: int) -> None:
        self._metrics.step_seconds.observe(elapsed_ms / 1e3)
        if num_tokens >= self._feed_tokens:
            per_token = elapsed_ms / num_tokens
            self.prefill_ms = per_token if self.prefill_ms == 0 else 0.8 * self.prefill_ms + 0.2 * per_token
        elif num_tokens <= 2:
            self.step_ms = elapsed_ms if self.step_ms == 0 else 0.9 * self.step_ms + 0.1 * elapsed_ms
