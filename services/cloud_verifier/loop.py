"""The verify loop: collect -> forward -> commit -> answer, repeated without phases or a timer.

Invariant: one pass runs at a time. The next pass takes what arrived meanwhile, as far as it has room. A failed pass
fails only the sessions that cause the error. If the engine can't compute any more, the loop ends with an error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import structlog

from services.cloud_verifier.engine import Computed, Engine, StepRow
from services.cloud_verifier.metrics import VerifierMetrics
from services.cloud_verifier.sessions import SessionSlot, SessionTable
from shared.policies.batching import BatchCandidate, Batcher, PassCost
from shared.protocol.messages import Verdict
from shared.protocol.pass_row import PassInfo, PassRow

log = structlog.get_logger(__name__)

MAX_FAILURES = 3  # consecutive ones, before the engine is probed
MIN_FAILED_SESSIONS = 2  # distinct ones: a single session that keeps failing is not evidence against the engine


@dataclass(frozen=True, slots=True)
class PassShare:
    """One session's share of a pass."""

    slot: SessionSlot
    row: PassRow
    compute: StepRow[Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a pass: what was computed of each share, None if that share failed."""

    computed: list[Computed | None]
    elapsed_ms: float


def engine_thread() -> ThreadPoolExecutor:
    """One thread, to load an engine and to compute in.

    OpenMP gives each thread that computes workers of its own. GNU's lets none spin once they are more than the cores:
    then each product of a pass waits until they are woken up.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="engine")


class VerifyLoop:
    """Runs passes while any session is ready, and waits for `wake` otherwise."""

    def __init__(
        self,
        engine: Engine[Any],
        table: SessionTable,
        batcher: Batcher,
        cost: PassCost,
        metrics: VerifierMetrics,
        answer: Callable[[SessionSlot, Verdict], None],
        fail: Callable[[SessionSlot], None],
        max_looked_up: int = 0,
        executor: ThreadPoolExecutor | None = None,
    ) -> None:
        """executor: in which the engine was loaded (`engine_thread`)."""
        self._engine = engine
        self._table = table
        self._batcher = batcher
        self._cost = cost
        self._metrics = metrics
        self._answer = answer
        self._fail = fail
        self._max_looked_up = max_looked_up
        self._num_failures = 0  # since the last computed row
        self._failed_ids: set[str] = set()
        self._ready = asyncio.Event()
        self._executor = executor or engine_thread()
        self.token_budget = batcher.token_budget
        self.pass_ms = 0.0
        self.batch = 0

    def wake(self) -> None:
        """Call after any change that may make a session ready."""
        self._ready.set()

    def count_failure(self, session_ids: Iterable[str]) -> None:
        """Counts a pass in which every row failed, or a context that could not be created."""
        self._num_failures += 1
        self._failed_ids.update(session_ids)

    async def run(self) -> None:
        """Runs until cancelled, then waits for the running step. Raises RuntimeError if the engine can't compute."""
        try:
            while True:
                if self._num_failures >= MAX_FAILURES and len(self._failed_ids) >= MIN_FAILED_SESSIONS:
                    await self._probe()
                batch = self._collect()
                if batch:
                    self._commit(batch, await self._forward(batch))
                else:
                    self._ready.clear()
                    await self._ready.wait()
        finally:
            self._executor.shutdown(wait=True)

    async def warm_up(self) -> None:
        """Runs passes of growing size: compiles kernels and fits the cost model before the first session."""
        for each in await asyncio.get_running_loop().run_in_executor(self._executor, self._engine.warm_up):
            self._cost.observe(each.num_sessions, each.num_tokens, each.cached_tokens, each.elapsed_ms)

    async def _probe(self) -> None:
        """Raises RuntimeError unless the engine computes a token. A failed GPU kernel is permanent for the process.

        If the token is computed, the sessions caused the failures: a client may send a text that always fails.
        """
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._engine.probe)
        except Exception as error:
            message = f"the target model failed {self._num_failures} times in a row and then failed a probe"
            raise RuntimeError(message) from error
        self._forget_failures()

    def _forget_failures(self) -> None:
        self._num_failures = 0
        self._failed_ids.clear()

    @property
    def queue_tokens(self) -> int:
        """Tokens that wait to be computed, guesses included."""
        return sum(s.state.num_todo + len(s.state.guesses.pending) for s in self._table if s.state.finish is None)

    @property
    def queue(self) -> float:
        """Queue utilisation: queued tokens / token budget, clipped to 1."""
        return min(1.0, self.queue_tokens / self.token_budget)

    def _collect(self) -> list[PassShare]:
        for slot in self._table:
            if slot.state.ready:
                slot.state.look_up(self._max_looked_up)
        self._table.prepare_pass()
        slots, now = self._table.ready(), time.monotonic() * 1e3
        candidates = [
            BatchCandidate(
                num_todo=slot.state.num_todo,
                chances=slot.state.chances[: self._engine.info.max_guesses],
                cached_tokens=slot.state.computed,
                waited_ms=now - slot.state.opened_at,
            )
            for slot in slots
        ]
        batch = []
        for share in self._batcher.form(candidates):
            slot = slots[share.index]
            row = slot.state.begin_pass(share.max_tokens, share.max_guesses)
            batch.append(PassShare(slot, row, step_row(slot, row)))
        return batch

    async def _forward(self, batch: Sequence[PassShare]) -> Outcome:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._compute, [share.compute for share in batch])

    def _compute(self, rows: list[StepRow[Any]]) -> Outcome:
        """Runs in the engine's thread. Repeats a failed pass row by row, so that only the faulty rows fail."""
        started = time.perf_counter()
        computed: list[Computed | None]
        try:
            computed = list(self._engine.step(rows))
        except Exception:
            log.exception("pass failed, repeating it row by row", num_sessions=len(rows))
            self._metrics.failed_passes.inc()
            computed = [self._compute_alone(row) for row in rows]
        return Outcome(computed, (time.perf_counter() - started) * 1e3)

    def _compute_alone(self, row: StepRow[Any]) -> Computed | None:
        try:
            return self._engine.step([row])[0]
        except Exception:
            log.exception("session can't be computed", start=row.start, num_tokens=len(row.token_ids))
            return None

    def _commit(self, batch: Sequence[PassShare], outcome: Outcome) -> None:
        num_tokens = sum(computed.num_tokens for computed in outcome.computed if computed)
        cached = sum(share.row.start for share in batch)
        self._cost.observe(len(batch), num_tokens, cached, outcome.elapsed_ms)
        self.pass_ms = outcome.elapsed_ms if self.pass_ms == 0 else 0.8 * self.pass_ms + 0.2 * outcome.elapsed_ms
        self.batch = len(batch)
        self._count_failed_pass(batch, outcome)
        info = PassInfo(outcome.elapsed_ms, len(batch), self.queue, num_tokens)
        num_committed = 0
        for share, computed in zip(batch, outcome.computed, strict=True):
            num_committed += self._commit_share(share, computed, info)
        self._metrics.observe_pass(outcome.elapsed_ms, len(batch), num_tokens, num_committed)

    def _count_failed_pass(self, batch: Sequence[PassShare], outcome: Outcome) -> None:
        """One computed row proves that the engine works and resets the count."""
        if all(computed is None for computed in outcome.computed):
            self.count_failure(share.slot.state.session_id for share in batch)
        elif self._num_failures:
            self._forget_failures()

    def _commit_share(self, share: PassShare, computed: Computed | None, info: PassInfo) -> int:
        state = share.slot.state
        if computed is None:
            if state.abandon_pass(share.row):  # else the session was closed or rebound during the pass
                self._fail(share.slot)
            return 0
        drawn, now = computed.drawn, time.monotonic() * 1e3
        before = replace(state.own_guesses.fates) if share.row.looked_up.match else None
        verdict = state.end_pass(
            share.row,
            drawn.token_ids,
            info,
            now,
            drawn.logprobs,
            computed.length,
            forced=drawn.forced,
            scored=drawn.scored,
        )
        if (trace := share.slot.trace) is not None:
            elapsed_ms, fed_ids = info.compute_ms, share.row.fed_ids
            trace.worked(now / 1e3, elapsed_ms, share.row.start, len(fed_ids), has_token=verdict is not None)
        if verdict is None:
            return 0
        if before is not None:
            self._metrics.count_lookups(before, state.own_guesses.fates)
        if verdict.finish:
            self._table.settle(share.slot)
        self._answer(share.slot, verdict)
        return len(verdict.token_ids)


def step_row(slot: SessionSlot, row: PassRow) -> StepRow[Any]:
    """The engine's row for a session's share."""
    assert slot.context is not None
    return StepRow(slot.context, row.start, row.fed_ids, row.num_draws, row.scored_ids)
