"""The body of POST /v1/chat/completions: a conversation, and how to answer it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from services.gateway.bodies.body import Body, ShortText, blame
from services.gateway.bodies.generation_body import GenerationBody, MaxTokens, Off
from services.gateway.text.chat_template import ChatMessage, Conversation
from shared.protocol.messages import MAX_TOP_LOGPROBS

MAX_MESSAGES = 4096
MAX_PARTS = 1024  # of one message
MAX_OPTIONS = 16  # of a chat template
RESERVED = {
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
}  # variables of a template with fields of their own


class TextPart(Body):
    type: Literal["text"]
    text: str


def _as_parts(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise PydanticCustomError("content", "must be a string or a list of text parts")
    return value


TextParts = Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]


class FunctionCall(Body):
    name: ShortText
    arguments: str  # JSON, as the model wrote it


class ToolCall(Body):
    """A call in an earlier answer."""

    id: ShortText
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None  # of a streamed answer

    @property
    def field(self) -> dict[str, Any]:
        """What a chat template gets."""
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": self.type, "function": function}


_NULL, _GIVEN = {"type": "null"}, {"not": {"type": "null"}}
_NO_CALL = {"tool_calls": _NULL, "tool_call_id": _NULL}
_SHAPES: list[Any] = [
    {
        "properties": {"role": {"enum": ["system", "developer", "user", "assistant"]}, "content": _GIVEN, **_NO_CALL},
        "required": ["content"],
    },
    {
        "properties": {"role": {"const": "assistant"}, **_NO_CALL, "tool_calls": _GIVEN},
        "required": ["tool_calls"],
    },
    {
        "properties": {"role": {"const": "tool"}, "content": _GIVEN, **_NO_CALL, "tool_call_id": {"type": "string"}},
        "required": ["content", "tool_call_id"],
    },
]


class MessageBody(Body):
    """One turn; text parts are joined by line breaks. Clients may send the message of an answer back unchanged, so its
    other fields are accepted where they are empty. `developer` is OpenAI's newer name of `system`."""

    model_config = ConfigDict(json_schema_extra={"anyOf": _SHAPES})

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[TextParts | None, BeforeValidator(_as_parts, str | TextParts | None)] = None
    name: ShortText | None = None
    tool_call_id: ShortText | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # vLLM's newer name of the same
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.tool_calls is None:
            raise blame("content", "content is missing")
        if self.tool_calls is not None and self.role != "assistant":
            raise blame("tool_calls", "tool_calls is only allowed in a message of the assistant")
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise blame("tool_call_id", "tool_call_id must be given in a message of a tool, and in no other")
        return self

    @property
    def message(self) -> ChatMessage:
        role = "system" if self.role == "developer" else self.role
        content = None if self.content is None else "\n".join(part.text for part in self.content)
        return ChatMessage(role, content, self.fields)

    @property
    def fields(self) -> dict[str, Any]:
        """What a chat template may use besides role and content, under the names that templates know."""
        given = {
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "tool_calls": None if self.tool_calls is None else [each.field for each in self.tool_calls],
            "reasoning_content": self.reasoning_content or self.reasoning,
        }
        return {name: value for name, value in given.items() if value is not None}


def _as_options(value: Any) -> Any:
    """One error, whatever the number of entries."""
    if value is not None and (not isinstance(value, dict) or len(value) > MAX_OPTIONS):
        raise PydanticCustomError("options", "must be an object of at most {most} entries", {"most": MAX_OPTIONS})
    if reserved := sorted(RESERVED & set(value or ())):
        raise PydanticCustomError("options", "must not have {name}", {"name": reserved[0]})
    if any(isinstance(each, dict | list) for each in (value or {}).values()):
        raise PydanticCustomError("options", "must have texts, numbers, true, false and null as values")
    return value


_Options = Annotated[dict[str, str | int | float | bool | None], Field(max_length=MAX_OPTIONS)]
TemplateOptions = Annotated[_Options | None, BeforeValidator(_as_options, _Options | None)]


class ChatBody(GenerationBody):
    """POST /v1/chat/completions"""

    unoffered: ClassVar[frozenset[str]] = GenerationBody.unoffered | {"echo"}

    messages: list[MessageBody] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: MaxTokens = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: Off | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: TemplateOptions = None

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
    def conversation(self) -> Conversation:
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        return Conversation([turn.message for turn in self.messages], effort | (self.chat_template_kwargs or {}))

    @property
    def num_top(self) -> int | None:
        """How many of the likeliest tokens to report at each position; None: no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None
