"""POST /tokenize and /detokenize in vLLM's shapes: text to token ids and back, without a session (docs/api.md).

Invariant: /tokenize gives the ids that a generation for the same prompt or messages computes.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

import msgspec
from pydantic import Field, model_validator

from services.gateway.bodies.body import MAX_NAME_CHARACTERS, Body, blame
from services.gateway.bodies.chat_body import MAX_MESSAGES, MessageBody, TemplateOptions, messages_of
from services.gateway.bodies.generation_body import Off
from services.gateway.errors import bad_request
from services.gateway.http.parsing import parse
from services.gateway.http.request_builder import RequestBuilder, explained
from services.gateway.text.chat_template import Conversation
from shared.protocol.messages import MAX_TOKENS, TokenIds

ModelName = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]
AnyId = Annotated[int, Field(ge=0, lt=1 << 32)]


class TokenizeBody(Body):
    """POST /tokenize: a prompt, or the messages of a chat."""

    unoffered: ClassVar[frozenset[str]] = frozenset({"continue_final_message"})

    model: ModelName | None = None
    prompt: str | None = None
    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: TemplateOptions = None
    return_token_strs: bool | None = None
    continue_final_message: Off | None = None

    @model_validator(mode="after")
    def _has_one_text(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise blame("prompt", "either prompt or messages must be given")
        if self.messages is None:
            for name in ("add_generation_prompt", "chat_template_kwargs"):
                if getattr(self, name) is not None:
                    raise blame(name, f"{name} is only allowed with messages")
        elif self.add_special_tokens:
            raise blame("add_special_tokens", "add_special_tokens must be false with messages: the template has them")
        return self

    @property
    def conversation(self) -> Conversation | None:
        if self.messages is None:
            return None
        return Conversation(
            messages_of(self.messages),
            self.chat_template_kwargs or {},
            add_generation_prompt=self.add_generation_prompt is not False,
        )


class DetokenizeBody(Body):
    """POST /detokenize"""

    model: ModelName | None = None
    tokens: Annotated[list[AnyId], Field(max_length=MAX_TOKENS, fail_fast=True)]


class TokenizeReply(msgspec.Struct, frozen=True):
    """token_strs: the tokens as the vocabulary has them, where asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeReply(msgspec.Struct, frozen=True):
    prompt: str


def tokenized(
    builder: RequestBuilder, raw: bytes, unknown: list[str] | None, max_model_len: int
) -> tuple[TokenizeReply, list[str]]:
    """The answer to a body, and the names of fields without effect. Slow for long texts: call it in a thread."""
    body = parse(TokenizeBody, raw, unknown)
    _check_model(builder, body.model)
    ids, ignored = _ids(builder, body)
    strs = [builder.tokenizer.piece(token_id) or "" for token_id in ids] if body.return_token_strs else None
    return TokenizeReply(len(ids), max_model_len, list(ids), strs), [*ignored, *(unknown or ())]


def detokenized(
    builder: RequestBuilder, raw: bytes, unknown: list[str] | None, max_model_len: int
) -> tuple[DetokenizeReply, list[str]]:
    """The text of a body's ids, special tokens included. Call it in a thread, too."""
    body = parse(DetokenizeBody, raw, unknown)
    _check_model(builder, body.model)
    for token_id in set(body.tokens):
        if builder.tokenizer.piece(token_id) is None:
            raise bad_request(f"tokens: the tokenizer has no token with id {token_id}", "tokens", "invalid_value")
    return DetokenizeReply(builder.tokenizer.decode(body.tokens, skip_special_tokens=False)), unknown or []


def _ids(builder: RequestBuilder, body: TokenizeBody) -> tuple[TokenIds, list[str]]:
    conversation = body.conversation
    if conversation is not None:
        with explained("messages"):
            return builder.tokenizer.encode_chat(conversation), builder.tokenizer.unused(conversation)
    with explained("prompt"):
        special = body.add_special_tokens is not False
        return builder.tokenizer.encode_text(body.prompt or "", add_special_tokens=special), []


def _check_model(builder: RequestBuilder, name: str | None) -> None:
    if name is not None:
        builder.check_model(name)
