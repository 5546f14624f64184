"""One answer as bytes in the shape of its endpoint: a whole body, or the events of a stream (docs/api.md)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from services.gateway.errors import ApiError
from services.gateway.formats.parts import AnswerMessage, CallArguments, CallBegin, Content, Part, Reasoning
from services.gateway.http.response_models import (
    DONE,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatMessageReply,
    ChatToken,
    Chunk,
    CompletionChoice,
    CompletionChunkChoice,
    CompletionLogprobs,
    DsdPieces,
    DsdReport,
    FinishReason,
    FunctionDelta,
    FunctionReply,
    LastChunk,
    LikelyToken,
    RequestMetrics,
    TokenPiece,
    ToolCallDelta,
    ToolCallReply,
    Usage,
    UsageChunk,
    Whole,
)
from services.gateway.text.output_text import Piece, ScoredText, ScoredToken

WholeChoice: TypeAlias = ChatChoice | CompletionChoice
ChunkChoice: TypeAlias = ChatChunkChoice | CompletionChunkChoice
ObjectName: TypeAlias = Literal["chat.completion", "chat.completion.chunk", "text_completion"]


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """One choice that is complete. tokens None: logprobs are null; an empty answer has empty logprobs."""

    message: AnswerMessage
    tokens: list[ScoredToken] | None
    finish: FinishReason


class AnswerWriter(Protocol):
    """Writes one answer, of one choice or several, in the shape of its endpoint."""

    @property
    def session_id(self) -> str: ...

    @property
    def tells_usage_so_far(self) -> bool: ...

    def opening(self, num_choices: int) -> bytes:
        """The events that begin a stream."""

    def piece(self, index: int, piece: Piece, window: int | None, so_far: Usage | None) -> bytes:
        """The events with the next piece of a choice. window: of the pair that works on it."""

    def ending(
        self, index: int, finish: FinishReason, report: DsdReport, metrics: RequestMetrics, so_far: Usage | None
    ) -> bytes:
        """The events that end a choice."""

    def closing(self, usage: Usage, metrics: RequestMetrics | None) -> bytes:
        """The events that end a stream."""

    def failure(self, error: ApiError) -> bytes:
        """The events that end a stream whose answer breaks off."""

    def whole(
        self, answers: Sequence[WholeAnswer], usage: Usage, report: DsdReport, metrics: RequestMetrics | None
    ) -> bytes:
        """The body of an answer in one piece."""


@dataclass(frozen=True, slots=True)
class ResponseWriter(ABC):
    """An AnswerWriter of choices. Subclasses give the shape of an endpoint's choices."""

    prefix: ClassVar[str]  # of ids
    whole_object: ClassVar[ObjectName]
    chunk_object: ClassVar[ObjectName]

    session_id: str
    created: int
    model: str
    fingerprint: Callable[[], str]  # it may change while the answer grows
    tells_usage: bool  # at the end of a stream
    tells_usage_so_far: bool  # in each event of a stream
    tells_sources: bool

    def opening(self, num_choices: int) -> bytes:
        firsts = [self._first(index) for index in range(num_choices)]
        return b"".join(self._chunk(first) for first in firsts if first is not None)

    def piece(self, index: int, piece: Piece, window: int | None, so_far: Usage | None) -> bytes:
        """One event for each part, if any."""
        dsd: DsdPieces | UnsetType = UNSET
        if self.tells_sources and piece.spans:
            dsd = DsdPieces([TokenPiece(span.text, span.source) for span in piece.spans], window)
        first, *others = self._next(index, piece)
        if not piece.parts and not piece.tokens and dsd is UNSET:
            return b""
        return self._chunk(first, dsd, so_far) + b"".join(self._chunk(each, UNSET, so_far) for each in others)

    def ending(
        self, index: int, finish: FinishReason, report: DsdReport, metrics: RequestMetrics, so_far: Usage | None
    ) -> bytes:
        del metrics  # they come with the usage, as vLLM's do
        head, choices = self._head(self.chunk_object), [self._last(index, finish)]
        return _event(LastChunk(**head, choices=choices, usage=self._usage(so_far), dsd=report))

    def failure(self, error: ApiError) -> bytes:
        return b"data: " + error.body + b"\n\n" + DONE

    def closing(self, usage: Usage, metrics: RequestMetrics | None) -> bytes:
        if not self.tells_usage:
            return DONE
        return _event(UsageChunk(**self._head(self.chunk_object), usage=usage, metrics=metrics or UNSET)) + DONE

    def whole(
        self, answers: Sequence[WholeAnswer], usage: Usage, report: DsdReport, metrics: RequestMetrics | None
    ) -> bytes:
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        head = self._head(self.whole_object)
        return msgspec.json.encode(Whole(**head, choices=choices, usage=usage, dsd=report, metrics=metrics))

    @abstractmethod
    def _choice(self, index: int, answer: WholeAnswer) -> WholeChoice: ...

    @abstractmethod
    def _first(self, index: int) -> ChunkChoice | None:
        """What the stream of a choice begins with, if anything."""

    @abstractmethod
    def _next(self, index: int, piece: Piece) -> Sequence[ChunkChoice]:
        """At least one; the first has the logprobs."""

    @abstractmethod
    def _last(self, index: int, finish: FinishReason) -> ChunkChoice: ...

    def _usage(self, so_far: Usage | None) -> Usage | UnsetType | None:
        """OpenAI: null in every chunk before the one with the usage, absent where no usage comes."""
        if so_far is not None:
            return so_far
        return None if self.tells_usage else UNSET

    def _chunk(self, choice: ChunkChoice, dsd: DsdPieces | UnsetType = UNSET, so_far: Usage | None = None) -> bytes:
        usage = self._usage(so_far)
        return _event(Chunk(**self._head(self.chunk_object), choices=[choice], usage=usage, dsd=dsd))

    def _head(self, kind: ObjectName) -> dict[str, Any]:
        """The fields of Head."""
        return {
            "id": self.prefix + self.session_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint(),
        }


class ChatWriter(ResponseWriter):
    """/v1/chat/completions"""

    __slots__ = ()
    prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def _choice(self, index: int, answer: WholeAnswer) -> ChatChoice:
        return ChatChoice(index, _chat_message(answer.message), _chat_logprobs(answer.tokens), answer.finish)

    def _first(self, index: int) -> ChatChunkChoice:
        return ChatChunkChoice(index, ChatDelta(role="assistant", content=""), None, None)

    def _next(self, index: int, piece: Piece) -> list[ChatChunkChoice]:
        first, *others = [_chat_delta(part) for part in piece.parts] or [ChatDelta()]
        begin = ChatChunkChoice(index, first, _chat_logprobs(piece.tokens or None), None)
        return [begin, *(ChatChunkChoice(index, delta, None, None) for delta in others)]

    def _last(self, index: int, finish: FinishReason) -> ChatChunkChoice:
        return ChatChunkChoice(index, ChatDelta(), None, finish)


class CompletionWriter(ResponseWriter):
    """/v1/completions"""

    __slots__ = ()
    prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"

    def _choice(self, index: int, answer: WholeAnswer) -> CompletionChoice:
        return CompletionChoice(index, answer.message.content, _completion_logprobs(answer.tokens), answer.finish)

    def _first(self, index: int) -> None:
        return None

    def _next(self, index: int, piece: Piece) -> list[CompletionChunkChoice]:
        return [CompletionChunkChoice(index, piece.text, _completion_logprobs(piece.tokens or None), None)]

    def _last(self, index: int, finish: FinishReason) -> CompletionChunkChoice:
        return CompletionChunkChoice(index, "", None, finish)


def _event(chunk: msgspec.Struct) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def _chat_message(message: AnswerMessage) -> ChatMessageReply:
    calls = [ToolCallReply(call.call_id, FunctionReply(call.name, call.arguments)) for call in message.calls]
    reasoning = message.reasoning or UNSET
    content = message.content if message.content or not calls else None
    return ChatMessageReply(
        content, reasoning_content=reasoning, reasoning=reasoning, tool_calls=calls if calls else UNSET
    )


def _chat_delta(part: Part) -> ChatDelta:
    match part:
        case Content(text):
            return ChatDelta(content=text)
        case Reasoning(text):
            return ChatDelta(reasoning_content=text, reasoning=text)
        case CallBegin(index, call_id, name):
            begin = FunctionDelta(name=name, arguments="")
            return ChatDelta(tool_calls=[ToolCallDelta(index=index, id=call_id, type="function", function=begin)])
        case CallArguments(index, text):
            return ChatDelta(tool_calls=[ToolCallDelta(index=index, function=FunctionDelta(arguments=text))])


def _chat_logprobs(tokens: list[ScoredToken] | None) -> ChatLogprobs | None:
    return None if tokens is None else ChatLogprobs([_chat_token(token) for token in tokens])


def _chat_token(token: ScoredToken) -> ChatToken:
    chosen, top = token.chosen, [LikelyToken(each.text, each.logprob, _bytes(each)) for each in token.top or ()]
    return ChatToken(chosen.text, chosen.logprob, _bytes(chosen), top)


def _bytes(scored: ScoredText) -> list[int] | None:
    return None if scored.data is None else list(scored.data)


def _completion_logprobs(tokens: list[ScoredToken] | None) -> CompletionLogprobs | None:
    if tokens is None:
        return None
    return CompletionLogprobs(
        tokens=[token.chosen.text for token in tokens],
        token_logprobs=[None if token.top is None else token.chosen.logprob for token in tokens],
        top_logprobs=[_by_name(token) for token in tokens],
        text_offset=[token.offset for token in tokens],
    )


def _by_name(token: ScoredToken) -> dict[str, float] | None:
    """Logprobs of the likeliest tokens and the chosen one; of two tokens with one name the likelier counts."""
    if token.top is None:
        return None
    named: dict[str, float] = {}
    for each in (*token.top, token.chosen):
        named.setdefault(each.text, each.logprob)
    return named
