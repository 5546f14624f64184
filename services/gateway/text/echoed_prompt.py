"""The prompt at the beginning of an answer (`echo`), with the logprobs of its tokens if they are asked for.

Invariant: the texts of all pieces joined are the prompt's text.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.gateway.formats.parts import Content
from services.gateway.session.verdict_stream import Committed
from services.gateway.text.detokenizer import UTF8
from services.gateway.text.output_text import Piece, ScoredToken, Span, likeliest, scored_text
from services.gateway.text.token_bytes import TokenBytes
from shared.protocol.messages import TokenLogprobs


class EchoedPrompt:
    """Pieces of one prompt's text. A special token is shown only where the text has its name."""

    def __init__(self, token_bytes: TokenBytes, token_ids: Sequence[int], text: str, *, is_scored: bool) -> None:
        self._token_bytes = token_bytes
        self._token_ids = token_ids
        self._text = text
        self._utf8 = UTF8("replace")
        self._offset = 0  # of the next token
        self._num_shown = 0  # characters
        self._num_told = 0 if is_scored else len(token_ids)

    @property
    def num_missing(self) -> int:
        """Tokens whose logprobs are missing."""
        return len(self._token_ids) - self._num_told

    def begin(self) -> Piece:
        """The first piece: the first token, or the whole text where no logprobs are asked for."""
        return self._piece([self._token(None)] if self.num_missing else [])

    def feed(self, committed: Sequence[Committed]) -> Piece:
        """The piece of the next tokens."""
        return self._piece([self._token(each.logprobs) for each in committed])

    def _piece(self, tokens: list[ScoredToken]) -> Piece:
        end = self._offset if self.num_missing else len(self._text)
        text, self._num_shown = self._text[self._num_shown : end], end
        return Piece([Span(text, "target")], tokens, [Content(text)]) if text else Piece([], tokens, [])

    def _token(self, logprobs: TokenLogprobs | None) -> ScoredToken:
        token_id, offset = self._token_ids[self._num_told], self._offset
        self._num_told += 1
        data = self._token_bytes.of(token_id)
        self._pass_over(self._token_bytes.name(token_id, None) if data is None else self._utf8.decode(data), data)
        chosen = scored_text(self._token_bytes, token_id, data, logprobs.logprob if logprobs else 0.0)
        return ScoredToken(chosen, offset, likeliest(self._token_bytes, logprobs) if logprobs else None)

    def _pass_over(self, part: str, data: bytes | None) -> None:
        """A decoder leaves out the space before the first word."""
        rest = self._text[self._offset : self._offset + len(part)]
        if data is not None:
            self._offset += len(part if self._offset or rest == part else part.lstrip())
        elif rest == part:
            self._offset += len(part)
        self._offset = min(self._offset, len(self._text))
