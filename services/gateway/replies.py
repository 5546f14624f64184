"""Answers in OpenAI's shapes: whole, or as chunks of an event stream; one dialect for each endpoint.

Every answer carries a `dsd` object (docs/api.md): what speculation did for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from shared.messages import Finish

DONE = b"data: [DONE]\n\n"


class TokenDetails(msgspec.Struct, frozen=True):
    """Fates of guesses, in OpenAI's words: rejected counts those discarded behind a rejection as well."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: TokenDetails


class DsdReport(msgspec.Struct, frozen=True):
    """What speculation did for one answer; times in milliseconds, counts over all verifiers that served it."""

    seed: int
    speculation: Literal["off", "static", "adaptive"]
    window: int | None
    drafter: str | None
    verifier: str | None
    num_verdicts: int
    accepted: int
    rejected: int
    late: int
    discarded: int
    tokens_per_verdict: float
    ttft_ms: float | None
    tpot_ms: float | None


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatMessageReply(msgspec.Struct, frozen=True):
    role: str
    content: str
    refusal: None = None


class ChatChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: ChatDelta
    logprobs: None
    finish_reason: Finish | None


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: ChatMessageReply
    logprobs: None
    finish_reason: Finish


class CompletionChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    logprobs: None
    finish_reason: Finish | None


Choice = ChatChunkChoice | ChatChoice | CompletionChoice


class Reply(msgspec.Struct, frozen=True):
    """A whole answer or one chunk of it."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage | UnsetType | None = UNSET
    dsd: DsdReport | UnsetType = UNSET


class Model(msgspec.Struct, frozen=True):
    id: str
    created: int
    max_model_len: int
    object: str = "model"
    owned_by: str = "dsd"


class ModelList(msgspec.Struct, frozen=True):
    data: list[Model]
    object: str = "list"


class Dialect(Protocol):
    """How one endpoint words an answer."""

    prefix: str
    whole: str
    chunk: str

    def first(self) -> Choice | None:
        """What a stream begins with."""
        ...

    def piece(self, text: str, finish: Finish | None) -> Choice: ...

    def answer(self, text: str, finish: Finish) -> Choice: ...


class ChatDialect:
    """/v1/chat/completions"""

    prefix, whole, chunk = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def first(self) -> Choice | None:
        return ChatChunkChoice(0, ChatDelta(role="assistant", content=""), None, None)

    def piece(self, text: str, finish: Finish | None) -> Choice:
        return ChatChunkChoice(0, ChatDelta(content=text) if text else ChatDelta(), None, finish)

    def answer(self, text: str, finish: Finish) -> Choice:
        return ChatChoice(0, ChatMessageReply("assistant", text), None, finish)


class CompletionDialect:
    """/v1/completions"""

    prefix, whole, chunk = "cmpl-", "text_completion", "text_completion"

    def first(self) -> Choice | None:
        return None

    def piece(self, text: str, finish: Finish | None) -> Choice:
        return CompletionChoice(0, text, None, finish)

    def answer(self, text: str, finish: Finish) -> Choice:
        return CompletionChoice(0, text, None, finish)


@dataclass(frozen=True, slots=True)
class Voice:
    """One answer's dialect and the head that all its chunks share."""

    dialect: Dialect
    session_id: str
    created: int
    model: str
    fingerprint: str
    streams_usage: bool

    def opening(self) -> bytes:
        """The event that begins a stream, if the dialect has one."""
        first = self.dialect.first()
        return b"" if first is None else self._event([first])

    def piece(self, text: str) -> bytes:
        """The event with the next piece of text."""
        return self._event([self.dialect.piece(text, None)])

    def ending(self, finish: Finish, usage: Usage, report: DsdReport) -> bytes:
        """The events that end a stream."""
        last = self._event([self.dialect.piece("", finish)], dsd=report)
        return last + (self._event([], usage=usage) if self.streams_usage else b"") + DONE

    def whole(self, text: str, finish: Finish, usage: Usage, report: DsdReport) -> bytes:
        """The body of an answer in one piece."""
        return self._encode(self.dialect.whole, [self.dialect.answer(text, finish)], usage, report)

    def _event(self, choices: list[Choice], usage: Usage | None = None, dsd: DsdReport | UnsetType = UNSET) -> bytes:
        body = self._encode(self.dialect.chunk, choices, usage if self.streams_usage else UNSET, dsd)
        return b"data: " + body + b"\n\n"

    def _encode(
        self, kind: str, choices: list[Choice], usage: Usage | UnsetType | None, dsd: DsdReport | UnsetType
    ) -> bytes:
        reply_id = self.dialect.prefix + self.session_id
        return msgspec.json.encode(
            Reply(reply_id, kind, self.created, self.model, self.fingerprint, choices, usage, dsd)
        )
