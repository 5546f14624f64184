"""The verify loop: collect -> forward -> commit -> answer, over and over, without phases and without a timer.

Invariant: one pass at a time; whatever arrived while it ran is in the next one; a pass that fails costs only the
sessions that make it fail. Where the model itself computes nothing any more, the loop ends with an error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from services.cloud_verifier.metrics import VerifierMetrics
from services.cloud_verifier.sessions import Seat, SessionTable
from services.cloud_verifier.torch_engine.model import Drawn, Row, TargetModel
from shared.policies.batching import Batcher, Candidate, PassCost
from shared.protocol.messages import Sampling, TokenIds, Verdict
from shared.protocol.sampling import History, is_adjusted
from shared.protocol.verifier_session import PassInfo, PassRow

log = structlog.get_logger(__name__)

WARM_UP_TOKENS = (1, 2, 4, 8, 16, 32, 64)
MAX_FAILURES = 3  # in a row: then the model is tried, whether it is at fault
MIN_FAILED_SESSIONS = 2  # among them: one that fails again and again says nothing about the model


@dataclass(frozen=True, slots=True)
class PassShare:
    """One session in one pass."""

    seat: Seat
    row: PassRow
    compute: Row


@dataclass(frozen=True, slots=True)
class Outcome:
    """The draws of each share, None where that session's computation failed, and the time it all took."""

    draws: list[Drawn | None]
    elapsed_ms: float


class VerifyLoop:
    """Runs passes while any session is ready; `wake` tells it that one may be."""

    def __init__(
        self,
        model: TargetModel,
        table: SessionTable,
        batcher: Batcher,
        cost: PassCost,
        metrics: VerifierMetrics,
        answer: Callable[[Seat, Verdict], None],
        fail: Callable[[Seat], None],
    ) -> None:
        self._model = model
        self._table = table
        self._batcher = batcher
        self._cost = cost
        self._metrics = metrics
        self._answer = answer
        self._fail = fail
        self._num_failures = 0  # since anything was computed
        self._failed_ids: set[str] = set()
        self._ready = asyncio.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="target-model")
        self.token_budget = batcher.token_budget
        self.pass_ms = 0.0
        self.batch = 0

    def wake(self) -> None:
        """Something changed: a session may be ready."""
        self._ready.set()

    def count_failure(self, session_ids: Iterable[str]) -> None:
        """A pass in which every row failed, or a cache that couldn't be made."""
        self._num_failures += 1
        self._failed_ids.update(session_ids)

    async def run(self) -> None:
        """Runs until cancelled; a running forward pass is waited for. Raises RuntimeError when the model computes
        nothing any more."""
        try:
            while True:
                if self._num_failures >= MAX_FAILURES and len(self._failed_ids) >= MIN_FAILED_SESSIONS:
                    await self._try_model()
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
        await asyncio.get_running_loop().run_in_executor(self._executor, self._measure)

    def _measure(self) -> None:
        """In the model's thread: each size once for the kernels and once for the clock."""
        cache = self._model.new_cache(max(WARM_UP_TOKENS))
        for num_tokens in WARM_UP_TOKENS:
            row = Row(cache, 0, TokenIds([0] * num_tokens), num_tokens, Sampling())
            self._model.step([row])
            started = time.perf_counter()
            self._model.step([row])
            self._cost.observe(1, num_tokens, 0, (time.perf_counter() - started) * 1e3)

    async def _try_model(self) -> None:
        """Raises RuntimeError unless the model computes a lone token: then it was the sessions, as a client may send a
        text that fails again and again. A GPU computes nothing more in a process in which a kernel has failed."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._compute_one)
        except Exception as error:
            message = f"the target model computes nothing any more: {self._num_failures} failures in a row"
            raise RuntimeError(message) from error
        self._forget_failures()

    def _compute_one(self) -> None:
        """In the model's thread: the first size of the warm-up again."""
        self._model.step([Row(self._model.new_cache(1), 0, TokenIds([0]), 1, Sampling())])

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
        seats = self._table.ready()
        candidates = [
            Candidate(
                num_todo=seat.state.num_todo,
                num_guesses=len(seat.state.pending),
                probability=seat.state.survival.probability,
                cached_tokens=seat.state.computed,
            )
            for seat in seats
        ]
        batch = []
        for share in self._batcher.form(candidates):
            seat = seats[share.index]
            row = seat.state.begin_pass(share.max_tokens, share.max_guesses)
            batch.append(PassShare(seat, row, computation(seat, row)))
        return batch

    async def _forward(self, batch: Sequence[PassShare]) -> Outcome:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._compute, [share.compute for share in batch])

    def _compute(self, rows: list[Row]) -> Outcome:
        """In the model's thread. A failing pass is repeated row by row, so that only the rows at fault fail."""
        started = time.perf_counter()
        draws: list[Drawn | None]
        try:
            draws = list(self._model.step(rows))
        except Exception:
            log.exception("pass failed, repeating it session by session", num_sessions=len(rows))
            self._metrics.failed_passes.inc()
            draws = [self._compute_alone(row) for row in rows]
        return Outcome(draws, (time.perf_counter() - started) * 1e3)

    def _compute_alone(self, row: Row) -> Drawn | None:
        try:
            return self._model.step([row])[0]
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
        """One row that was computed tells that the model is sound."""
        if all(drawn is None for drawn in outcome.draws):
            self.count_failure(share.seat.state.session_id for share in batch)
        elif self._num_failures:
            self._forget_failures()

    def _commit_share(self, share: PassShare, drawn: Drawn | None, info: PassInfo) -> int:
        state = share.seat.state
        if drawn is None:
            if state.abandon_pass(share.row):  # else the session was closed or rebound meanwhile
                self._fail(share.seat)
            return 0
        verdict = state.end_pass(share.row, drawn.token_ids, info, time.monotonic() * 1e3, drawn.logprobs)
        if verdict is None:
            return 0
        if verdict.finish:
            self._table.settle(share.seat)
        self._answer(share.seat, verdict)
        return len(verdict.token_ids)


def computation(seat: Seat, row: PassRow) -> Row:
    """What the model is asked for a session's share."""
    assert seat.cache is not None
    request = seat.state.request
    history = None
    if row.num_draws and is_adjusted(request.sampling, request.min_tokens):
        output_ids = seat.state.tokens[len(request.prompt_ids) :]
        history = History(request.prompt_ids, output_ids, request.stop_ids, request.min_tokens)
    return Row(
        cache=seat.cache,
        start=row.start,
        token_ids=row.fed_ids,
        num_draws=row.num_draws,
        sampling=request.sampling,
        history=history,
        num_top=request.logprobs,
        prefix=seat.take_prefix(),
    )
