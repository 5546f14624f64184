"""Pieces of an answer for the client: text that is final, the source of each part, and logprobs.

Invariant: the texts of all pieces joined are the answer's text, however verdicts cut its tokens. Every counted token is
in exactly one piece, not before the text that it completes. No token behind a stop string is in any piece.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.gateway.formats.message_parser import MessageParser, PlainText
from services.gateway.formats.parts import Part, Reasoning
from services.gateway.session.verdict_stream import Committed, TokenSource
from services.gateway.text.detokenizer import UTF8, Detokenizer, StopScanner
from services.gateway.text.token_bytes import TokenBytes
from shared.protocol.messages import TokenLogprobs

LEAST_LOGPROB = -9999.0  # JSON has no infinity


@dataclass(frozen=True, slots=True)
class Span:
    """Text of one token, or a part of it. A character made of several tokens belongs to the last of them."""

    text: str
    source: TokenSource


@dataclass(frozen=True, slots=True)
class ScoredText:
    """A token as text. data: its bytes; None for a special token."""

    text: str
    data: bytes | None
    logprob: float


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of the answer. offset: of its text in the answer, in characters. top: the likeliest tokens there; None: a
    prompt's first token, which has no logprob."""

    chosen: ScoredText
    offset: int
    top: list[ScoredText] | None


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that becomes final at once, as the model wrote it. tokens: empty unless logprobs were requested. parts: what
    the message of the answer gains; it may lag behind the text."""

    spans: list[Span]
    tokens: list[ScoredToken]
    parts: list[Part]

    @property
    def text(self) -> str:
        return "".join(span.text for span in self.spans)

    def __bool__(self) -> bool:
        return bool(self.spans or self.tokens or self.parts)


@dataclass(slots=True)
class _HeldText:
    """Text that is not final yet, and the tokens that its last character completes."""

    text: str
    source: TokenSource
    tokens: list[ScoredToken]


class AnswerText:
    """The text of one answer and its count of tokens, up to and including the one that completes a stop string.

    A stop id (end of sequence) counts as a token and has no text. A stop string that is complete within the first
    `min_tokens` tokens is ignored.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        token_bytes: TokenBytes,
        stops: Iterable[str],
        stop_ids: Iterable[int],
        min_tokens: int = 0,
        parser: MessageParser | None = None,
        num_characters: int = 0,
    ) -> None:
        """num_characters: of a text that the answer follows, for the offsets of its tokens."""
        self._detokenizer = detokenizer
        self._token_bytes = token_bytes
        self._scanner = StopScanner(stops)
        self._parser = parser or PlainText()
        self._stop_ids = frozenset(stop_ids)
        self._min_tokens = min_tokens
        self._pending: list[Committed] = []  # tokens inside a character
        self._held: deque[_HeldText] = deque()
        self._num_characters = num_characters  # of the text so far, held text included
        self._last_source: TokenSource = "target"
        self.num_tokens = 0
        self.num_reasoning_tokens = 0  # up to the end of the reasoning; what comes at once with that counts, too

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete: later tokens don't count."""
        return self._scanner.found is not None

    @property
    def has_calls(self) -> bool:
        """Whether the answer calls a tool."""
        return self._parser.has_calls

    def feed(self, committed: Iterable[Committed]) -> Piece:
        """The piece that becomes final with these tokens; it may be empty."""
        final = ""
        for token in committed:
            if self.stopped:
                break
            self.num_tokens += 1
            self._last_source = token.source
            if token.token_id in self._stop_ids:
                final += self._read(self._detokenizer.flush())
                self._hold("", [token])
            else:
                self._pending.append(token)
                final += self._read(self._detokenizer.step(token.token_id))
        return self._release(len(final))

    def flush(self) -> Piece:
        """The rest, when no token follows. It may still complete a stop string."""
        final = self._read(self._detokenizer.flush())
        final += self._scanner.flush()
        if self._pending:
            self._hold("", self._take_pending())
        piece = self._release(len(final), all_tokens=True)
        piece.parts.extend(self._told(self._parser.flush()))
        return piece

    def _read(self, text: str) -> str:
        """Takes the text that the decoder has made of the pending tokens; returns the text that becomes final."""
        if not text:
            return ""
        self._hold(text, self._take_pending())
        return self._scanner.feed(text, may_stop=self.num_tokens > self._min_tokens)

    def _take_pending(self) -> list[Committed]:
        pending, self._pending = self._pending, []
        return pending

    def _hold(self, text: str, tokens: Sequence[Committed]) -> None:
        scored = self._score(text, tokens) if any(token.logprobs for token in tokens) else []
        self._held.append(_HeldText(text, self._last_source, scored))
        self._num_characters += len(text)

    def _release(self, num_characters: int, *, all_tokens: bool = False) -> Piece:
        """The next characters of the held text, with the tokens whose text is complete; at the end with all tokens."""
        spans, tokens = [], []
        while self._held and len(self._held[0].text) <= num_characters:
            first = self._held.popleft()
            num_characters -= len(first.text)
            tokens += first.tokens
            if first.text:
                spans.append(Span(first.text, first.source))
        if num_characters:
            first = self._held[0]
            spans.append(Span(first.text[:num_characters], first.source))
            first.text = first.text[num_characters:]
        if all_tokens:
            tokens += [token for each in self._held for token in each.tokens]
            self._held.clear()
        return Piece(spans, tokens, self._told(self._parser.feed("".join(span.text for span in spans))))

    def _told(self, parts: list[Part]) -> list[Part]:
        """Notes how far the reasoning goes."""
        if any(isinstance(part, Reasoning) for part in parts):
            self.num_reasoning_tokens = self.num_tokens
        return parts

    def _score(self, text: str, tokens: Sequence[Committed]) -> list[ScoredToken]:
        parts = self._token_bytes.split([token.token_id for token in tokens], text)
        utf8, offset, scored = UTF8("ignore"), self._num_characters, []
        for token, part in zip(tokens, parts, strict=True):
            assert token.logprobs is not None
            chosen = scored_text(self._token_bytes, token.token_id, part, token.logprobs.logprob)
            scored.append(ScoredToken(chosen, offset, likeliest(self._token_bytes, token.logprobs)))
            offset += len(utf8.decode(part or b""))
        return scored


def likeliest(token_bytes: TokenBytes, logprobs: TokenLogprobs) -> list[ScoredText]:
    return [
        scored_text(token_bytes, token_id, token_bytes.of(token_id), logprob)
        for token_id, logprob in zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)
    ]


def scored_text(token_bytes: TokenBytes, token_id: int, data: bytes | None, logprob: float) -> ScoredText:
    return ScoredText(token_bytes.name(token_id, data), data, max(logprob, LEAST_LOGPROB))
