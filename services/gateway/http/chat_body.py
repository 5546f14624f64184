"""The body of POST /v1/chat/completions: a conversation, and how to answer it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from services.gateway.http.generation_body import Body, GenerationBody, MaxTokens, Off, ShortText, blame
from services.gateway.text.chat_template import ChatMessage
from shared.protocol.messages import MAX_TOP_LOGPROBS

MAX_MESSAGES = 4096
MAX_PARTS = 1024  # of one message


class TextPart(Body):
    type: Literal["text"]
    text: str


def _as_parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise PydanticCustomError("content", "must be a string or a list of text parts")
    return value


TextParts = Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]


class MessageBody(Body):
    """One turn; text parts are joined by line breaks. Clients may send the message of an answer back unchanged, so its
    other fields are accepted where they are null. `developer` is OpenAI's newer name of `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[TextParts, BeforeValidator(_as_parts, str | TextParts)]
    name: ShortText | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    @property
    def message(self) -> ChatMessage:
        role = "system" if self.role == "developer" else self.role
        return ChatMessage(role, "\n".join(part.text for part in self.content))


class ChatBody(GenerationBody):
    """POST /v1/chat/completions"""

    unoffered: ClassVar[frozenset[str]] = GenerationBody.unoffered | {"echo"}

    messages: list[MessageBody] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: MaxTokens = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: Off | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise blame("max_tokens", "max_tokens and max_completion_tokens exclude each other")
        return self

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise blame("top_logprobs", "top_logprobs is only allowed when logprobs is true")
        return self

    @property
    def ignored(self) -> list[str]:
        names = ["messages.name"] if any(message.name is not None for message in self.messages) else []
        return [*super().ignored, *names]

    @property
    def num_top(self) -> int | None:
        """How many of the likeliest tokens to report at each position; None: no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None
