"""Pieces of an answer as a client may see them: text let go of, whose tokens it is, and their logprobs.

Invariant: the texts of all pieces are the answer's text, whatever verdicts brought its tokens; every token counted
stands in exactly one piece, not before the text that it completes, and none behind a stop string in any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.gateway.session.verdict_stream import Committed, Fate
from services.gateway.text.detokenizer import Detokenizer, StopScanner
from services.gateway.text.token_bytes import TokenBytes
from shared.protocol.messages import TokenLogprobs

LEAST_LOGPROB = -9999.0  # JSON has no infinity


@dataclass(frozen=True, slots=True)
class Span:
    """Text of one token, or a part of it; a character that several tokens make up belongs to the last of them."""

    text: str
    fate: Fate


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A token in words. data: its bytes, None for a special token."""

    text: str
    data: bytes | None
    logprob: float


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of the answer. offset: of its text in the answer's, in characters. top: the likeliest tokens there."""

    chosen: ScoredText
    offset: int
    top: list[ScoredText]


@dataclass(frozen=True, slots=True)
class Piece:
    """What is let go of at once. tokens: only where logprobs were asked for."""

    spans: list[Span]
    tokens: list[ScoredToken]

    @property
    def text(self) -> str:
        return "".join(span.text for span in self.spans)

    def __bool__(self) -> bool:
        return bool(self.spans or self.tokens)


@dataclass(slots=True)
class _Waiting:
    """Text that is not shown yet, and the tokens that go with its last character."""

    text: str
    fate: Fate
    tokens: list[ScoredToken]


class AnswerText:
    """The text of one answer and its count of tokens, up to and including the one that completes a stop string.

    A stop id (end of sequence) counts as a token and shows nothing. A stop string that is complete within the first
    `min_tokens` tokens is none.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        token_bytes: TokenBytes,
        stops: Iterable[str],
        stop_ids: Iterable[int],
        min_tokens: int = 0,
    ) -> None:
        self._detokenizer = detokenizer
        self._token_bytes = token_bytes
        self._scanner = StopScanner(stops)
        self._stop_ids = frozenset(stop_ids)
        self._min_tokens = min_tokens
        self._pending: list[Committed] = []  # tokens inside a character
        self._waiting: deque[_Waiting] = deque()
        self._num_characters = 0  # of the text so far, the part not shown included
        self._last_fate: Fate = "target"
        self.num_tokens = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete: no later token counts, whatever finish it carries."""
        return self._scanner.found is not None

    def feed(self, committed: Iterable[Committed]) -> Piece:
        """What these tokens let go of."""
        shown = ""
        for token in committed:
            if self.stopped:
                break
            self.num_tokens += 1
            self._last_fate = token.fate
            if token.token_id in self._stop_ids:
                shown += self._read(self._detokenizer.flush())
                self._wait("", [token])
            else:
                self._pending.append(token)
                shown += self._read(self._detokenizer.step(token.token_id))
        return self._let_go(len(shown))

    def flush(self) -> Piece:
        """What was held back, when no token follows. It may still complete a stop string."""
        shown = self._read(self._detokenizer.flush())
        shown += self._scanner.flush()
        if self._pending:
            self._wait("", self._take_pending())
        return self._let_go(len(shown), all_tokens=True)

    def _read(self, text: str) -> str:
        """The text that may be shown with what the decoder has made of the pending tokens."""
        if not text:
            return ""
        self._wait(text, self._take_pending())
        return self._scanner.feed(text, may_stop=self.num_tokens > self._min_tokens)

    def _take_pending(self) -> list[Committed]:
        pending, self._pending = self._pending, []
        return pending

    def _wait(self, text: str, tokens: Sequence[Committed]) -> None:
        scored = self._score(text, tokens) if any(token.logprobs for token in tokens) else []
        self._waiting.append(_Waiting(text, self._last_fate, scored))
        self._num_characters += len(text)

    def _let_go(self, num_characters: int, *, all_tokens: bool = False) -> Piece:
        """The next characters of the waiting text, with the tokens that are shown whole; at the end all the tokens."""
        spans, tokens = [], []
        while self._waiting and len(self._waiting[0].text) <= num_characters:
            first = self._waiting.popleft()
            num_characters -= len(first.text)
            tokens += first.tokens
            if first.text:
                spans.append(Span(first.text, first.fate))
        if num_characters:
            first = self._waiting[0]
            spans.append(Span(first.text[:num_characters], first.fate))
            first.text = first.text[num_characters:]
        if all_tokens:
            tokens += [token for each in self._waiting for token in each.tokens]
            self._waiting.clear()
        return Piece(spans, tokens)

    def _score(self, text: str, tokens: Sequence[Committed]) -> list[ScoredToken]:
        parts = self._token_bytes.split([token.token_id for token in tokens], text)
        before, scored = b"", []
        for token, part in zip(tokens, parts, strict=True):
            assert token.logprobs is not None
            offset = self._num_characters + len(before.decode(errors="ignore"))
            chosen = self._scored_text(token.token_id, part, token.logprobs.logprob)
            scored.append(ScoredToken(chosen, offset, self._likeliest(token.logprobs)))
            before += part or b""
        return scored

    def _likeliest(self, logprobs: TokenLogprobs) -> list[ScoredText]:
        return [
            self._scored_text(token_id, self._token_bytes.of(token_id), logprob)
            for token_id, logprob in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)
        ]

    def _scored_text(self, token_id: int, data: bytes | None, logprob: float) -> ScoredText:
        return ScoredText(self._token_bytes.name(token_id, data), data, max(logprob, LEAST_LOGPROB))
