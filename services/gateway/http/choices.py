"""All choices of one request: their sessions live and end together, their pieces come interleaved.

Invariant: when a choice fails, all others are closed and the first failure is raised. No task outlives its generator.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from itertools import zip_longest

import msgspec

from services.gateway.admission.gate import AdmissionTicket
from services.gateway.http.answer import ChoiceAnswer
from services.gateway.http.response_models import DsdReport, RequestMetrics, TokenDetails, Usage
from services.gateway.session.generation import Generation
from services.gateway.session.manager import LiveSession, Sessions
from services.gateway.text.output_text import Piece

COUNTS = ("num_verdicts", "accepted", "rejected", "late", "discarded", "looked_up")  # fields of a report that add up
PAIR = ("window", "drafter", "verifier")  # fields that may differ between choices


@asynccontextmanager
async def opened(
    ticket: AdmissionTicket, sessions: Sessions, generations: Sequence[Generation]
) -> AsyncIterator[list[LiveSession]]:
    """Sessions that verifiers have taken, alive as long as the block. Raises the first SessionFailed, or ApiError when
    the ticket's deadline passes first."""
    async with AsyncExitStack() as stack:
        asked_at = ticket.deadline.asked_at
        lives = [await stack.enter_async_context(sessions.live(each, asked_at)) for each in generations]
        ticket.sessions.extend(live.session for live in lives)
        try:
            async with ticket.deadline.kept(), asyncio.TaskGroup() as opening:
                for live in lives:
                    opening.create_task(live.opened())
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        yield lives


@dataclass(frozen=True, slots=True)
class ChoicePiece:
    """The next piece of one choice; None: the choice is complete."""

    index: int
    piece: Piece | None


class Choices:
    """The answers to one request, by their index."""

    def __init__(self, answers: Sequence[ChoiceAnswer], num_prompt_tokens: int) -> None:
        self.answers = answers
        self._num_prompt_tokens = num_prompt_tokens

    async def pieces(self) -> AsyncGenerator[ChoicePiece, None]:
        """The pieces of all choices as they come; raises SessionFailed when a choice can't continue."""
        if len(self.answers) == 1:  # the usual case, which needs neither task nor queue
            async with aclosing(self.answers[0].pieces()) as pieces:
                async for piece in pieces:
                    yield ChoicePiece(0, piece)
            await asyncio.sleep(0)  # the session's driver ends: nothing is left when the client has its answer
            yield ChoicePiece(0, None)
            return
        queue: asyncio.Queue[ChoicePiece | Exception] = asyncio.Queue(maxsize=len(self.answers))
        tasks = [asyncio.create_task(_follow(i, answer, queue)) for i, answer in enumerate(self.answers)]
        num_open = len(tasks)
        try:
            while num_open:
                next_one = await queue.get()
                if isinstance(next_one, Exception):
                    raise next_one
                num_open -= next_one.piece is None
                yield next_one
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def usage(self) -> Usage:
        num_output = sum(answer.num_tokens for answer in self.answers)
        tallies = [answer.tally for answer in self.answers]
        details = TokenDetails(
            accepted_prediction_tokens=sum(answer.num_accepted for answer in self.answers),
            rejected_prediction_tokens=sum(tally.rejected for tally in tallies),
            reasoning_tokens=sum(answer.num_reasoning_tokens for answer in self.answers),
        )
        return Usage(self._num_prompt_tokens, num_output, self._num_prompt_tokens + num_output, details)

    @property
    def report(self) -> DsdReport:
        """The report of the only choice, or the sum over all choices together with each report."""
        reports = [answer.report for answer in self.answers]
        return reports[0] if len(reports) == 1 else summed(reports)

    @property
    def metrics(self) -> RequestMetrics | None:
        """Of the only choice; as in vLLM, several have none."""
        return self.answers[0].metrics if len(self.answers) == 1 else None


async def _follow(index: int, answer: ChoiceAnswer, queue: asyncio.Queue[ChoicePiece | Exception]) -> None:
    """Puts an answer's pieces into the queue, and then its end or its failure."""
    try:
        async with aclosing(answer.pieces()) as pieces:
            async for piece in pieces:
                await queue.put(ChoicePiece(index, piece))
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(ChoicePiece(index, None))


def summed(reports: list[DsdReport]) -> DsdReport:
    """Counts are sums. Fields that differ between the choices are None. `ttft_ms` is the least, `tpot_ms` the mean."""
    first, num_tokens = reports[0], sum(report.tokens_per_verdict * max(1, report.num_verdicts) for report in reports)
    counts = {name: sum(getattr(report, name) for report in reports) for name in COUNTS}
    differing = {name for name in PAIR if any(getattr(report, name) != getattr(first, name) for report in reports)}
    positions = [report.accepted_per_position for report in reports]
    tpots = [report.tpot_ms for report in reports if report.tpot_ms is not None]
    return msgspec.structs.replace(
        first,
        **counts,
        **dict.fromkeys(differing),
        accepted_per_position=[sum(each) for each in zip_longest(*positions, fillvalue=0)],
        tokens_per_verdict=round(num_tokens / max(1, counts["num_verdicts"]), 3),
        ttft_ms=min((report.ttft_ms for report in reports if report.ttft_ms is not None), default=None),
        tpot_ms=round(sum(tpots) / len(tpots), 3) if tpots else None,
        choices=reports,
    )
