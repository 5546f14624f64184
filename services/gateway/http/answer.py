"""One choice under way: a live session's tokens as pieces of text, with its count of tokens and its report."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from services.gateway.formats.parts import Content
from services.gateway.http.response_models import DsdReport, FinishReason
from services.gateway.metrics import GatewayMetrics
from services.gateway.session.manager import LiveSession
from services.gateway.text.output_text import AnswerText, Piece, Span
from shared.protocol.messages import Tally
from shared.protocol.subjects import instance_name


class ChoiceAnswer:
    """Follows a session to its finish or to a stop string, and ends it there. echo: text to begin the answer with."""

    def __init__(
        self, live: LiveSession, text: AnswerText, asked_at: float, metrics: GatewayMetrics, echo: str = ""
    ) -> None:
        self._session = live.session
        self._live = live
        self._text = text
        self._metrics = metrics
        self._asked_at = asked_at
        self._echo = echo
        self._first_at: float | None = None
        self._last_at = asked_at

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The text as it comes; raises SessionFailed when the session can't continue."""
        if self._echo:
            yield Piece([Span(self._echo, "target")], [], [Content(self._echo)])
        async with aclosing(self._live.tokens()) as batches:
            async for committed in batches:
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
            tokens_per_verdict=round(len(session.stream.tokens) / max(1, tally.num_passes), 3),
            ttft_ms=self._ttft_ms,
            tpot_ms=self._tpot_ms,
        )

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
        if (tpot_ms := self._tpot_ms) is not None:
            self._metrics.tpot_seconds.observe(tpot_ms / 1e3)
