"""The bodies of POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from services.gateway.bodies.body import MAX_NAME_CHARACTERS, Body, blame
from services.gateway.bodies.chat_body import MAX_MESSAGES, MessageBody, TemplateOptions, Tools, messages_of
from services.gateway.bodies.generation_body import Off
from services.gateway.text.chat_template import Conversation
from shared.protocol.messages import MAX_TOKENS

ModelName = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]
AnyId = Annotated[int, Field(ge=0, lt=1 << 32)]


class TokenizeBody(Body):
    """POST /tokenize: a prompt, or the messages of a chat."""

    unoffered: ClassVar[frozenset[str]] = frozenset({"continue_final_message"})

    model: ModelName | None = None
    prompt: str | None = None
    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    tools: Tools | None = None
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
            for name in ("add_generation_prompt", "chat_template_kwargs", "tools"):
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
            [tool.field for tool in self.tools or ()],
            add_generation_prompt=self.add_generation_prompt is not False,
        )


class DetokenizeBody(Body):
    """POST /detokenize"""

    model: ModelName | None = None
    tokens: Annotated[list[AnyId], Field(max_length=MAX_TOKENS, fail_fast=True)]
