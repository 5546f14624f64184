"""How the two generating endpoints word an answer: the same choices and events, each in its own shape."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

from services.gateway.http.response_models import (
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatMessageReply,
    ChatToken,
    CompletionChoice,
    CompletionChunkChoice,
    CompletionLogprobs,
    LikelyToken,
)
from services.gateway.text.output_text import Piece, ScoredText, ScoredToken
from shared.protocol.messages import Finish

WholeChoice: TypeAlias = ChatChoice | CompletionChoice
ChunkChoice: TypeAlias = ChatChunkChoice | CompletionChunkChoice
ObjectName: TypeAlias = Literal["chat.completion", "chat.completion.chunk", "text_completion"]


class Dialect(Protocol):
    """How one endpoint words an answer. With logprobs also an empty answer has some, namely none."""

    prefix: str
    whole: ObjectName
    chunk: ObjectName

    def first(self, index: int) -> ChunkChoice | None:
        """What the stream of a choice begins with."""
        ...

    def piece(self, index: int, piece: Piece) -> ChunkChoice: ...

    def last(self, index: int, finish: Finish) -> ChunkChoice: ...

    def answer(self, index: int, text: str, tokens: list[ScoredToken] | None, finish: Finish) -> WholeChoice: ...


class ChatDialect:
    """/v1/chat/completions"""

    prefix = "chatcmpl-"
    whole: ObjectName = "chat.completion"
    chunk: ObjectName = "chat.completion.chunk"

    def first(self, index: int) -> ChunkChoice | None:
        return ChatChunkChoice(index, ChatDelta(role="assistant", content=""), None, None)

    def piece(self, index: int, piece: Piece) -> ChunkChoice:
        return ChatChunkChoice(index, ChatDelta(content=piece.text), _chat_logprobs(piece.tokens or None), None)

    def last(self, index: int, finish: Finish) -> ChunkChoice:
        return ChatChunkChoice(index, ChatDelta(), None, finish)

    def answer(self, index: int, text: str, tokens: list[ScoredToken] | None, finish: Finish) -> WholeChoice:
        return ChatChoice(index, ChatMessageReply(text), _chat_logprobs(tokens), finish)


class CompletionDialect:
    """/v1/completions"""

    prefix = "cmpl-"
    whole: ObjectName = "text_completion"
    chunk: ObjectName = "text_completion"

    def first(self, index: int) -> ChunkChoice | None:
        return None

    def piece(self, index: int, piece: Piece) -> ChunkChoice:
        return CompletionChunkChoice(index, piece.text, _completion_logprobs(piece.tokens or None), None)

    def last(self, index: int, finish: Finish) -> ChunkChoice:
        return CompletionChunkChoice(index, "", None, finish)

    def answer(self, index: int, text: str, tokens: list[ScoredToken] | None, finish: Finish) -> WholeChoice:
        return CompletionChoice(index, text, _completion_logprobs(tokens), finish)


def _chat_logprobs(tokens: list[ScoredToken] | None) -> ChatLogprobs | None:
    if tokens is None:
        return None
    return ChatLogprobs([_chat_token(token) for token in tokens])


def _chat_token(token: ScoredToken) -> ChatToken:
    chosen, top = token.chosen, [LikelyToken(each.text, each.logprob, _bytes(each)) for each in token.top]
    return ChatToken(chosen.text, chosen.logprob, _bytes(chosen), top)


def _bytes(scored: ScoredText) -> list[int] | None:
    return None if scored.data is None else list(scored.data)


def _completion_logprobs(tokens: list[ScoredToken] | None) -> CompletionLogprobs | None:
    if tokens is None:
        return None
    return CompletionLogprobs(
        tokens=[token.chosen.text for token in tokens],
        token_logprobs=[token.chosen.logprob for token in tokens],
        top_logprobs=[_by_name(token) for token in tokens],
        text_offset=[token.offset for token in tokens],
    )


def _by_name(token: ScoredToken) -> dict[str, float]:
    """The likeliest tokens and the one chosen; of two with one name the likelier."""
    named: dict[str, float] = {}
    for each in (*token.top, token.chosen):
        named.setdefault(each.text, each.logprob)
    return named
