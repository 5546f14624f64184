"""The drafting loop: collect -> forward -> commit -> send, one model step at a time.

Invariant: a rollback takes effect between draft steps only. The state machine drops the guess of a step that began
before it, so the cache always holds the tokens that the session counts as computed. A failed step fails only the
sessions that cause the error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import structlog

from services.edge_drafter.guess import Guess
from services.edge_drafter.metrics import DrafterMetrics
from services.edge_drafter.model import DraftModel, DraftRow
from services.edge_drafter.pairs import moving
from services.edge_drafter.sessions import DraftSessions, SessionSlot, StepShare
from shared.policies.stepping import guess_ms

log = structlog.get_logger(__name__)

WARM_UP_STEPS, WARM_UP_ROWS = 4, 4
STEP_WEIGHT = 0.1  # of the newest step in moving averages
PREFILL_WEIGHT = 0.2  # of the newest chunk of a prompt
RETURN_WEIGHT = 0.05  # of the prefill time at the start, at a heartbeat before which nothing was read
LONGEST = 8.0  # times the average, the most that a time counts: during a longer one the machine slept, say
NO_GUESS = Guess(0)  # of a share without a guess


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a step: the guess of each share, None if that share failed."""

    guesses: list[Guess | None]
    elapsed_ms: float


class DraftLoop:
    """Runs the draft model while sessions want steps, and waits for `wake` otherwise."""

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
        self.batch = 0  # sessions in the last step that fed each one or two tokens
        self.step_ms = 0.0  # of a step that feeds a session one or two tokens
        self.cost = StepCost(model.max_rows)
        self.prefill_ms = 0.0  # per token
        self._first_prefill_ms = 0.0
        self._has_read = False  # a prompt since the last heartbeat

    def wake(self) -> None:
        """Call it when a session may need a step."""
        self._ready.set()

    async def run(self) -> None:
        """Runs until cancelled, then waits for the running step."""
        try:
            while True:
                if not await self.draft():
                    self._ready.clear()
                    await self._ready.wait()
        finally:
            self._executor.shutdown(wait=True)

    async def draft(self) -> bool:
        """One step; False if no session wants one."""
        shares = self._table.begin_step(self._feed_tokens, self.prefill_ms)
        if shares:
            self._commit(shares, await self._forward(shares))
        return bool(shares)

    async def warm_up(self) -> None:
        """Times each kind of step, so that the first heartbeat has its speed."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._measure)
        self._first_prefill_ms = self.prefill_ms

    def on_heartbeat(self) -> None:
        """Gateways pass over a drafter that reads slowly, so while it reads nothing its prefill time returns to that of
        its start: they try it again."""
        if not self._has_read and self.prefill_ms > self._first_prefill_ms:
            self.prefill_ms = moving(self.prefill_ms, self._first_prefill_ms, RETURN_WEIGHT)
        self._has_read = False

    def _measure(self) -> None:
        """In the model's thread."""
        model, steps = self._model, range(WARM_UP_STEPS)
        num_tokens = min(self._feed_tokens, model.max_context - WARM_UP_STEPS)
        caches = [model.new_cache(num_tokens + WARM_UP_STEPS) for _ in range(min(WARM_UP_ROWS, model.max_rows))]
        kinds = [(caches[:1], 0, num_tokens)] * 2 + [(caches[:1], num_tokens + i, 1) for i in steps]
        if len(caches) > 1:
            kinds += [(caches, i, 1) for i in steps]
        for together, start, length in kinds:
            started = time.perf_counter()
            model.step([DraftRow(cache, start, [0] * length) for cache in together])
            self._observe((time.perf_counter() - started) * 1e3, length, len(together))

    async def _forward(self, shares: Sequence[StepShare]) -> Outcome:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._compute, shares)

    def _compute(self, shares: Sequence[StepShare]) -> Outcome:
        """Runs in the model's thread. Repeats a failed step share by share, so that only the faulty shares fail."""
        started = time.perf_counter()
        guesses: list[Guess | None]
        try:
            guesses = list(self._guesses(shares))
        except Exception:
            log.exception("draft step failed", sessions=[share.slot.state.session_id for share in shares])
            self._metrics.failed_steps.inc()
            guesses = [self._compute_alone(share) for share in shares] if len(shares) > 1 else [None]
        return Outcome(guesses, (time.perf_counter() - started) * 1e3)

    def _compute_alone(self, share: StepShare) -> Guess | None:
        try:
            return self._guesses([share])[0]
        except Exception:
            log.exception("session can't be drafted for", session=share.slot.state.session_id)
            return None

    def _guesses(self, shares: Sequence[StepShare]) -> list[Guess]:
        """The guess after the fed tokens of each share, NO_GUESS for one that wants none."""
        logits = self._model.step([share.row for share in shares])
        return [
            share.inputs.draw(after_last) if share.inputs else NO_GUESS
            for share, after_last in zip(shares, logits, strict=True)
        ]

    def _commit(self, shares: Sequence[StepShare], outcome: Outcome) -> None:
        if any(guess is not None for guess in outcome.guesses):
            most_fed = max(len(share.step.fed_ids) for share in shares)
            self.batch = len(shares) if most_fed <= 2 else self.batch
            has_copied = any(share.row.prefix for share in shares)
            self._observe(outcome.elapsed_ms, most_fed, len(shares), has_copied=has_copied)
        for share, guess in zip(shares, outcome.guesses, strict=True):
            if (trace := share.slot.trace) is not None:
                now, step = time.monotonic(), share.step
                trace.worked(now, outcome.elapsed_ms, step.start, len(step.fed_ids), has_token=step.draws)
            self._commit_share(share, guess)

    def _commit_share(self, share: StepShare, guess: Guess | None) -> None:
        state = share.slot.state
        if guess is None:
            self._fail(share.slot)
            return
        if (prefix := share.row.prefix) is not None:
            self._metrics.prefix_tokens.inc(prefix.length - prefix.start)
        before = state.drafted
        if state.end_step(share.step, guess.token_id, guess.confidence, guess.forced):
            self._metrics.drafted.inc(state.drafted - before)
            self._metrics.unsure.inc(state.is_unsure)
        self._send(share.slot)

    def _observe(self, elapsed_ms: float, most_fed: int, num_rows: int, *, has_copied: bool = False) -> None:
        """most_fed: tokens of the session that fed most. A step that copied a prefix counts in no average."""
        self._metrics.step_seconds.observe(elapsed_ms / 1e3)
        self._metrics.step_sessions.observe(num_rows)
        if has_copied:
            return
        if 2 * most_fed >= self._feed_tokens:
            self._has_read = True
            self.prefill_ms = moving(self.prefill_ms, likely(elapsed_ms / most_fed, self.prefill_ms), PREFILL_WEIGHT)
        elif most_fed <= 2:
            elapsed_ms = likely(elapsed_ms, self.step_ms)
            self.step_ms = moving(self.step_ms, elapsed_ms, STEP_WEIGHT)
            self.cost.observe(elapsed_ms, num_rows)


def likely(elapsed_ms: float, average_ms: float) -> float:
    """A time as it counts in its average; whole if it is the first."""
    return min(elapsed_ms, LONGEST * average_ms) if average_ms else elapsed_ms


class StepCost:
    """Milliseconds of a step that feeds a session one or two tokens, by its number of sessions.

    A line through the steps that falls nowhere, fitted by least squares; old steps fade. Where all steps are alike, a
    further session adds as much of a step with one as it ever did: numbers of sessions that have become rare are not
    forgotten. FURTHER of it while only one number is known.
    """

    FURTHER = 0.2
    MOST_FURTHER = 1.0  # more is noise: sessions could take turns
    REMEMBERED = 20  # steps in the mean of a number of sessions
    PRIOR_WEIGHT = 1e-4
    FORGETTING = 0.95

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._squares, self._products = np.zeros((2, 2)), np.zeros(2)
        self._mean_ms, self._weights = np.zeros(max_rows), np.zeros(max_rows)  # by sessions, less one
        self._has_seen = False

    def observe(self, elapsed_ms: float, num_rows: int) -> None:
        x = np.array([1.0, num_rows - 1])
        self._squares = self.FORGETTING * self._squares + np.outer(x, x)
        self._products = self.FORGETTING * self._products + x * elapsed_ms
        weight = self._weights[num_rows - 1] = min(self._weights[num_rows - 1] + 1, self.REMEMBERED)
        self._mean_ms[num_rows - 1] += (elapsed_ms - self._mean_ms[num_rows - 1]) / weight
        self._has_seen = True

    def guess_ms(self, num_sessions: int) -> float:
        """Between two guesses of a session while so many draft; 0 before the first step."""
        if not self._has_seen:
            return 0.0
        return guess_ms(num_sessions, self._max_rows, *self._line())

    def _line(self) -> tuple[float, float]:
        """Milliseconds of a step with one session, and of each further one."""
        prior = np.array([-self._further(), 1.0])
        weight = self.PRIOR_WEIGHT * np.trace(self._squares)
        alone_ms, further_ms = np.linalg.solve(self._squares + weight * np.outer(prior, prior), self._products)
        if further_ms < 0:
            return float(self._products[0] / self._squares[0, 0]), 0.0
        if alone_ms < 0:
            return 0.0, float(self._products[1] / self._squares[1, 1])
        return float(alone_ms), float(further_ms)

    def _further(self) -> float:
        """What a further session adds to a step, in steps with one, by all numbers of sessions that ever were."""
        (known,) = self._weights.nonzero()
        if len(known) < 2:
            return self.FURTHER
        further_ms, alone_ms = np.polyfit(known, self._mean_ms[known], 1, w=np.sqrt(self._weights[known]))
        return min(max(float(further_ms), 0.0) / max(float(alone_ms), 1e-3), self.MOST_FURTHER)
