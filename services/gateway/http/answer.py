"""One choice under way: a live session's tokens as pieces of text, with its count of tokens and its report."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import accumulate

from services.gateway.http.response_models import (
    DsdReport,
    FinishReason,
    RequestMetrics,
    SpeculativeDecodingMetrics,
)
from services.gateway.metrics import GatewayMetrics
from services.gateway.session.manager import LiveSession
from services.gateway.text.echoed_prompt import EchoedPrompt
from services.gateway.text.output_text import AnswerText, Piece
from shared.protocol.messages import Tally
from shared.protocol.subjects import instance_name


class ChoiceAnswer:
    """Follows a session to its finish or to a stop string, and ends it there. echo: the prompt, to begin the answer
    with; is_silent: it alone is the answer."""

    def __init__(
        self,
        live: LiveSession,
        text: AnswerText,
        asked_at: float,
        metrics: GatewayMetrics,
        echo: EchoedPrompt | None = None,
        *,
        is_silent: bool = False,
    ) -> None:
        self._session = live.session
        self._live = live
        self._text = text
        self._metrics = metrics
        self._asked_at = asked_at
        self._echo = echo
        self._is_silent = is_silent
        self._opened_at = time.monotonic()
        self._first_at: float | None = None
        self._last_at = asked_at

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The text as it comes; raises SessionFailed when the session can't continue."""
        if self._echo is not None and (piece := self._echo.begin()):
            yield piece
        async with aclosing(self._live.tokens()) as batches:
            async for batch in batches:
                committed = batch
                if self._echo is not None and (num := self._echo.num_missing):
                    committed = batch[num:]
                    yield self._echo.feed(batch[:num])
                if self._is_silent or not committed:
                    continue
                self._last_at = time.monotonic()
                if self._first_at is None:
                    self._first_at = self._last_at
                if piece := self._text.feed(committed):
                    yield piece
                if self._text.stopped:
                    break
        self._live.close(self._text.num_tokens)
        if rest := self._text.flush():
            yield rest
        self._observe()

    @property
    def finish(self) -> FinishReason:
        """A stop string counts as "stop", even where the answer also reached its length. Calls that are complete turn
        that into "tool_calls"."""
        if self._is_silent:
            return "length"
        finish = "stop" if self._text.stopped else self._session.stream.finish or "stop"
        return "tool_calls" if finish == "stop" and self._text.has_calls else finish

    @property
    def scores_tokens(self) -> bool:
        """Whether pieces carry the logprobs of their tokens."""
        return self._session.generation.num_top is not None

    @property
    def num_tokens(self) -> int:
        return self._text.num_tokens

    @property
    def num_reasoning_tokens(self) -> int:
        return self._text.num_reasoning_tokens

    @property
    def num_accepted(self) -> int:
        """Accepted guesses in the text. A few behind a stop string may be among them."""
        return min(self.tally.accepted, self.num_tokens)

    @property
    def tally(self) -> Tally:
        return self._session.tallies.total

    @property
    def window(self) -> int | None:
        """The requested window, or the newest decision for the pair that works on the answer."""
        return self._live.window

    @property
    def report(self) -> DsdReport:
        session, tally = self._session, self.tally
        speculation = session.generation.speculation
        return DsdReport(
            seed=session.generation.sampling.seed,
            speculation=speculation.mode if speculation else "off",
            window=self.window,
            drafter=instance_name(session.drafter_id) if session.drafter_id else None,
            verifier=instance_name(session.verifier_id) if session.verifier_id else None,
            num_verdicts=tally.num_passes,
            accepted=tally.accepted,
            rejected=tally.rejected,
            late=tally.late,
            discarded=tally.discarded,
            looked_up=tally.looked_up,
            accepted_per_position=self._accepted_per_position,
            tokens_per_verdict=round(session.stream.num_answered / max(1, tally.num_passes), 3),
            ttft_ms=self._ttft_ms,
            tpot_ms=self._tpot_ms,
        )

    @property
    def metrics(self) -> RequestMetrics:
        """The same under vLLM's names."""
        first_at, elapsed_s = self._first_at, self._last_at - self._opened_at
        return RequestMetrics(
            time_to_first_token_ms=self._ttft_ms,
            generation_time_ms=None if first_at is None else round((self._last_at - first_at) * 1e3, 3),
            queue_time_ms=round((self._opened_at - self._asked_at) * 1e3, 3),
            mean_itl_ms=self._tpot_ms,
            tokens_per_second=None if first_at is None else round(self.num_tokens / max(elapsed_s, 1e-6), 3),
            speculative_decoding=acceptance(self._session.stream.histogram, self.tally),
        )

    @property
    def _accepted_per_position(self) -> list[int]:
        """Passes that accepted their first guess, their second, ..."""
        return list(accumulate(reversed(self._session.stream.histogram[1:])))[::-1]

    @property
    def _ttft_ms(self) -> float | None:
        return None if self._first_at is None else round((self._first_at - self._asked_at) * 1e3, 3)

    @property
    def _tpot_ms(self) -> float | None:
        if self._first_at is None or self._text.num_tokens < 2:
            return None
        return round((self._last_at - self._first_at) * 1e3 / (self._text.num_tokens - 1), 3)

    def _observe(self) -> None:
        if (ttft_ms := self._ttft_ms) is not None:
            self._metrics.ttft_seconds.observe(ttft_ms / 1e3)
            self._metrics.e2e_seconds.observe(self._last_at - self._asked_at)
        if (tpot_ms := self._tpot_ms) is not None:
            self._metrics.tpot_seconds.observe(tpot_ms / 1e3)


def acceptance(histogram: Sequence[int], tally: Tally) -> SpeculativeDecodingMetrics | None:
    """What became of guesses; None if no pass judged any. histogram: passes by the number of guesses they accepted."""
    num_passes, num_accepted = sum(histogram), sum(num * count for num, count in enumerate(histogram))
    if not num_passes:
        return None
    num_drafted = tally.accepted + tally.rejected + tally.late + tally.discarded
    return SpeculativeDecodingMetrics(
        mean_acceptance_length=round(1 + num_accepted / num_passes, 3),
        draft_acceptance_rate=round(num_accepted / max(1, num_drafted), 3),
        acceptance_histogram=list(histogram),
        num_spec_steps=num_passes,
        num_accepted_draft_tokens=num_accepted,
        num_draft_tokens=num_drafted,
        num_spec_tokens=len(histogram) - 1,
    )
