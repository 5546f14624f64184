"""The body of POST /v1/completions: one or several prompts to continue, as text or token ids."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from services.gateway.bodies.body import blame
from services.gateway.bodies.generation_body import MAX_CHOICES, Empty, GenerationBody, On, without_limit
from shared.protocol.messages import MAX_TOKENS, MAX_TOP_LOGPROBS

Prompt: TypeAlias = str | list[int]
_Text = Annotated[str, Field(min_length=1)]
_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MAX_TOKENS)]
_Texts = Annotated[list[_Text], Field(min_length=1, max_length=MAX_CHOICES)]
_IdLists = Annotated[list[_Ids], Field(min_length=1, max_length=MAX_CHOICES)]


def _as_prompts(value: Any) -> Any:
    """A list of prompts: all of them strings, or all of them lists of token ids."""
    if isinstance(value, str) or (isinstance(value, list) and value and not isinstance(value[0], str | list)):
        value = [value]
    if not isinstance(value, list) or not (_are_all(value, str) or _are_all(value, list)):
        raise PydanticCustomError("prompt", "must be a string or a list of token ids, or a list of such prompts")
    if not value or not all(value):
        raise PydanticCustomError("prompt", "must not be empty")
    if not all(isinstance(prompt, str) or _are_all(prompt, int) for prompt in value):
        raise PydanticCustomError("prompt", "must be a string or a list of token ids, or a list of such prompts")
    if any(len(prompt) > MAX_TOKENS for prompt in value if isinstance(prompt, list)):
        raise PydanticCustomError("prompt", "must have at most {limit} token ids", {"limit": MAX_TOKENS})
    return value


def _are_all(values: list[Any], kind: type) -> bool:
    """Whether all have exactly this type; for isinstance True would be an int."""
    return all(type(each) is kind for each in values)


def _without_false(value: Any) -> Any:
    return None if value is False else value


_Count = Annotated[int, Field(ge=0)]
MaxTokens = Annotated[_Count | None, BeforeValidator(without_limit, Literal[-1] | _Count | None)]
_NumLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]


class CompletionBody(GenerationBody):
    """POST /v1/completions"""

    unoffered: ClassVar[frozenset[str]] = GenerationBody.unoffered | {
        "add_special_tokens",
        "tool_choice",
        "tools",
        "top_logprobs",
    }

    prompt: Annotated[list[Prompt], BeforeValidator(_as_prompts, _Text | _Ids | _Texts | _IdLists)]
    add_special_tokens: On | None = None
    max_tokens: MaxTokens = None
    echo: bool | None = None
    logprobs: Annotated[_NumLogprobs | None, BeforeValidator(_without_false, bool | _NumLogprobs | None)] = None
    tool_choice: Literal["none", "auto"] | None = None
    tools: Empty | None = None
    top_logprobs: None = None

    @model_validator(mode="after")
    def _choices_are_bounded(self) -> Self:
        if len(self.prompt) * self.num_choices > MAX_CHOICES:
            raise blame("prompt", f"prompts times n are more than {MAX_CHOICES} choices")
        return self

    @model_validator(mode="after")
    def _echo_is_plain(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise blame("max_tokens", "max_tokens must be at least 1 without echo")
        if self.echo and self.sources:
            raise blame("echo", "echo and dsd.sources exclude each other: tokens of the prompt have no source")
        return self

    @property
    def num_top(self) -> int | None:
        """How many of the likeliest tokens to report at each position; None: no logprobs."""
        return self.logprobs

    @property
    def scores_prompt(self) -> bool:
        return bool(self.echo) and self.logprobs is not None
