"""The verify loop: collect -> forward -> commit -> answer, over and over, without phases and without a timer.

Invariant: one pass at a time; whatever arrived while it ran is in the next one; a pass that fails costs only the
sessions that make it fail. If the engine fails for good, the loop ends with an error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import structlog

from services.cloud_verifier.engine import Drawn, Engine, StepRow
from services.cloud_verifier.metrics import VerifierMetrics
from services.cloud_verifier.sessions import SessionSlot, SessionTable
from shared.policies.batching import BatchCandidate, Batcher, PassCost
from shared.protocol.messages import Verdict
from shared.protocol.sampling import History, is_adjusted
from shared.protocol.verifier_session import PassInfo, PassRow

log = structlog.get_logger(__name__)

MAX_FAILURES = 3  # in a row, before the engine is probed
MIN_FAILED_SESSIONS = 2  # among them: one session that fails again and again says nothing about the engine


@dataclass(frozen=True, slots=True)
class PassShare:
    """One session in one pass."""

    slot: SessionSlot
    row: PassRow
    compute: StepRow[Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The draws of each share, None where that session's computation failed, and the time it all took."""

    draws: list[Drawn | None]
    elapsed_ms: float


class VerifyLoop:
    """Runs passes while any session is ready; `wake` tells it that one may be."""

    def __init__(
        self,
        engine: Engine[Any],
        table: SessionTable,
        batcher: Batcher,
        cost: PassCost,
        metrics: VerifierMetrics,
        answer: Callable[[SessionSlot, Verdict], None],
        fail: Callable[[SessionSlot], None],
    ) -> None:
        self._engine = engine
        self._table = table
        self._batcher = batcher
        self._cost = cost
        self._metrics = metrics
        self._answer = answer
        self._fail = fail
        self._num_failures = 0  # since anything was computed
        self._failed_ids: set[str] = set()
        self._ready = asyncio.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self.token_budget = batcher.token_budget
        self.pass_ms = 0.0
        self.batch = 0

    def wake(self) -> None:
        """Something changed: a session may be ready."""
        self._ready.set()

    def count_failure(self, session_ids: Iterable[str]) -> None:
        """A pass in which every row failed, or a context that couldn't be made."""
        self._num_failures += 1
        self._failed_ids.update(session_ids)

    async def run(self) -> None:
        """Runs until cancelled, then waits for the running step. Raises RuntimeError when the engine fails for good."""
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
        """Runs passes of growing size, so that the first session meets warm kernels and a fitted cost curve."""
        for each in await asyncio.get_running_loop().run_in_executor(self._executor, self._engine.warm_up):
            self._cost.observe(each.num_sessions, each.num_tokens, each.cached_tokens, each.elapsed_ms)

    async def _probe(self) -> None:
        """Raises RuntimeError unless the engine computes a lone token. If it does, the sessions are at fault: a client
        may send a text that always fails. After a failed kernel a GPU computes nothing more in the process."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._engine.probe)
        except Exception as error:
            message = f"the target model computes nothing any more: {self._num_failures} failures in a row"
            raise RuntimeError(message) from error
        self._forget_failures()

    def _forget_failures(self) -> None:
        self._num_failures = 0
        self._failed_ids.clear()

    @property
    def queue_tokens(self) -> int:
        """Tokens that wait to be computed: prompts, first rows and guesses."""
        return sum(s.state.num_todo + len(s.state.pending) for s in self._table if s.state.finish is None)

    @property
    def queue(self) -> float:
        """Queue utilisation: queued tokens / token budget, clipped to 1."""
        return min(1.0, self.queue_tokens / self.token_budget)

    def _collect(self) -> list[PassShare]:
        self._table.share_prefixes()
        slots = self._table.ready()
        candidates = [
            BatchCandidate(
                num_todo=slot.state.num_todo,
                num_guesses=len(slot.state.pending),
                probability=slot.state.survival.probability,
                cached_tokens=slot.state.computed,
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
        """In the engine's thread. A failing pass is repeated row by row, so that only the rows at fault fail."""
        started = time.perf_counter()
        draws: list[Drawn | None]
        try:
            draws = list(self._engine.step(rows))
        except Exception:
            log.exception("pass failed, repeating it session by session", num_sessions=len(rows))
            self._metrics.failed_passes.inc()
            draws = [self._compute_alone(row) for row in rows]
        return Outcome(draws, (time.perf_counter() - started) * 1e3)

    def _compute_alone(self, row: StepRow[Any]) -> Drawn | None:
        try:
            return self._engine.step([row])[0]
        except Exception:
            log.exception("session can't be computed", start=row.start, num_tokens=len(row.token_ids))
            return None

    def _commit(self, batch: Sequence[PassShare], outcome: Outcome) -> None:
        num_tokens = sum(len(share.row.fed_ids) for share in batch)
        cached = sum(share.row.start for share in batch)
        self._cost.observe(len(batch), num_tokens, cached, outcome.elapsed_ms)
        self.pass_ms = outcome.elapsed_ms if self.pass_ms == 0 else 0.8 * self.pass_ms + 0.2 * outcome.elapsed_ms
        self.batch = len(batch)
        self._judge(batch, outcome)
        info = PassInfo(outcome.elapsed_ms, len(batch), self.queue, num_tokens)
        num_committed = 0
        for share, draws in zip(batch, outcome.draws, strict=True):
            num_committed += self._commit_share(share, draws, info)
        self._metrics.observe_pass(outcome.elapsed_ms, len(batch), num_tokens, num_committed)

    def _judge(self, batch: Sequence[PassShare], outcome: Outcome) -> None:
        """One computed row proves that the engine works."""
        if all(drawn is None for drawn in outcome.draws):
            self.count_failure(share.slot.state.session_id for share in batch)
        elif self._num_failures:
            self._forget_failures()

    def _commit_share(self, share: PassShare, drawn: Drawn | None, info: PassInfo) -> int:
        state = share.slot.state
        if drawn is None:
            if state.abandon_pass(share.row):  # else the session was closed or rebound meanwhile
                self._fail(share.slot)
            return 0
        verdict = state.end_pass(share.row, drawn.token_ids, info, time.monotonic() * 1e3, drawn.logprobs)
        if verdict is None:
            return 0
        if verdict.finish:
            self._table.settle(share.slot)
        self._answer(share.slot, verdict)
        return len(verdict.token_ids)


def step_row(slot: SessionSlot, row: PassRow) -> StepRow[Any]:
    """What the engine computes for a session's share."""
    assert slot.context is not None
    request = slot.state.request
    history = None
    if row.num_draws and is_adjusted(request.sampling, request.min_tokens):
        output_ids = slot.state.tokens[len(request.prompt_ids) :]
        history = History(request.prompt_ids, output_ids, request.stop_ids, request.min_tokens)
    return StepRow(
        context=slot.context,
        start=row.start,
        token_ids=row.fed_ids,
        num_draws=row.num_draws,
        sampling=request.sampling,
        history=history,
        num_top=request.logprobs,
    )
