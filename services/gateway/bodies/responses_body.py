"""The body of POST /v1/responses, which stands for a chat.

Invariant: the answer's text is the one of `chat`, so this body has no generation of its own. Nothing is kept between
requests.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from services.gateway.bodies.answer_format import JsonObjectFormat, JsonSchemaFormat, NamedSchema, Schema, TextFormat
from services.gateway.bodies.body import MAX_NAME_CHARACTERS, Body, ShortText, blame
from services.gateway.bodies.chat_body import (
    MAX_TOOLS,
    ChatBody,
    ChoiceWord,
    Effort,
    FunctionName,
    FunctionTool,
    MessageBody,
    NamedFunction,
    NamedTool,
    Parameters,
    TemplateOptions,
    TextPart,
    Tool,
    choice_validator,
)
from services.gateway.bodies.generation_body import Count, DsdOptions, Harmless, Off
from services.gateway.bodies.response_items import Items, chat_messages

MAX_INCLUDED = 16
CHAT_NAMES = {"messages": "input", "reasoning_effort": "reasoning.effort"}  # fields of a chat that may have no effect


def _is_function(value: Any) -> Any:
    """One error that names the tool."""
    if value != "function":
        reason = "{kind} is not supported: only functions that the client calls are"
        raise PydanticCustomError("tool", reason, {"kind": repr(value)[:MAX_NAME_CHARACTERS]})
    return value


class FlatTool(Body):
    """A function. parameters: JSON Schema of the arguments; None: there are none."""

    type: Annotated[Literal["function"], BeforeValidator(_is_function, Literal["function"])]
    name: FunctionName
    description: str | None = None
    parameters: Parameters | None = None
    strict: bool | None = None

    @property
    def of_chat(self) -> Tool:
        given = {name: getattr(self, name) for name in FunctionTool.model_fields}
        return Tool(type="function", function=FunctionTool(**given))


class FlatChoice(Body):
    """The only function that may be called."""

    type: Literal["function"]
    name: FunctionName


FLAT_CHOICE = choice_validator(FlatChoice, '{"type": "function", "name": …}')


class FlatSchemaFormat(Body):
    """The schema is kept strictly, whatever `strict` says."""

    type: Literal["json_schema"]
    name: ShortText | None = None
    description: str | None = None
    json_schema: Schema = Field(alias="schema")
    strict: bool | None = None

    @property
    def of_chat(self) -> JsonSchemaFormat:
        return JsonSchemaFormat(type="json_schema", json_schema=NamedSchema(schema=self.json_schema))


FlatFormat = Annotated[TextFormat | JsonObjectFormat | FlatSchemaFormat, Discriminator("type")]


class TextOptions(Body):
    """verbosity: only the one that no answer here differs from."""

    format: FlatFormat | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(Body):
    """summary: of the reasoning, which is returned itself."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseStreamOptions(Body):
    include_obfuscation: bool = False


Included = Literal["reasoning.encrypted_content"]


class Stateful(Body):
    """Options of OpenAI that need what this gateway does not have: a memory, or tools of its own. Each accepts only the
    value that has no effect."""

    background: Off | None = None
    context_management: Annotated[list[Any], Field(max_length=0)] | None = None
    conversation: None = None
    moderation: None = None
    previous_response_id: None = None
    prompt: None = None
    store: Off | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    truncation: Literal["disabled"] | None = None


class ResponsesBody(Harmless, Stateful):
    """POST /v1/responses"""

    unoffered: ClassVar[frozenset[str]] = frozenset(Stateful.model_fields)

    model: str = Field(max_length=MAX_NAME_CHARACTERS)
    input: Items
    instructions: str | None = None
    max_output_tokens: Count | None = None
    max_tool_calls: Count | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=1 << 31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    tools: Annotated[list[FlatTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Annotated[ChoiceWord | FlatChoice, FLAT_CHOICE] | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: Annotated[list[Included], Field(max_length=MAX_INCLUDED, fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    chat_template_kwargs: TemplateOptions = None
    dsd: DsdOptions | None = None

    @model_validator(mode="after")
    def _streaming_needs_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise blame("stream_options", "stream_options is only allowed when stream is true")
        if self.dsd is not None and self.dsd.sources:
            raise blame("dsd.sources", "sources is not supported here: use /v1/chat/completions")
        return self

    @model_validator(mode="after")
    def _is_a_chat(self) -> Self:
        """What a chat has against it concerns fields that have the same names here."""
        try:
            assert self.chat
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise blame(first["ctx"]["field"], first["ctx"]["message"]) from error
        return self

    @cached_property
    def chat(self) -> ResponsesChat:
        """The chat whose answer is the one to this body."""
        instructions = [] if self.instructions is None else [_system(self.instructions)]
        same = {name: getattr(self, name) for name in SAME}
        return ResponsesChat(
            messages=[*instructions, *chat_messages(self.input)],
            max_completion_tokens=self.max_output_tokens,
            tools=None if self.tools is None else [tool.of_chat for tool in self.tools],
            tool_choice=_chat_choice(self.tool_choice),
            response_format=_chat_format(self.text),
            reasoning_effort=self.reasoning.effort if self.reasoning else None,
            **same,
        )

    def ignored(self, of_chat: list[str]) -> list[str]:
        """Names of the given fields that have no effect. of_chat: those of the chat."""
        reasoning = self.reasoning or ReasoningOptions()
        given = {
            "include.reasoning.encrypted_content": self.include,
            "max_tool_calls": self.max_tool_calls,
            "reasoning.generate_summary": reasoning.generate_summary,
            "reasoning.summary": reasoning.summary,
            "stream_options.include_obfuscation": self.stream_options and self.stream_options.include_obfuscation,
        }
        return [*map(_own_name, of_chat), *(name for name, value in given.items() if value)]


class ResponsesChat(ChatBody):
    """A chat made from another body: errors name the fields of that."""

    @property
    def prompt_field(self) -> str:
        return "input"

    @property
    def limit_field(self) -> str:
        return "max_output_tokens"

    @property
    def format_field(self) -> str:
        return "text.format"


SAME = (set(ResponsesBody.model_fields) & set(ChatBody.model_fields)) - {
    "metadata",  # the response has it
    "stream_options",
    "tool_choice",
    "tools",
    "top_logprobs",
}  # fields that a chat has, too, and that mean the same there


def _own_name(name: str) -> str:
    first, dot, rest = name.partition(".")
    return CHAT_NAMES.get(first, first) + dot + rest


def _system(text: str) -> MessageBody:
    return MessageBody(role="system", content=[TextPart(type="text", text=text)])


def _chat_choice(choice: ChoiceWord | FlatChoice | None) -> ChoiceWord | NamedTool | None:
    if not isinstance(choice, FlatChoice):
        return choice
    return NamedTool(type="function", function=NamedFunction(name=choice.name))


def _chat_format(text: TextOptions | None) -> TextFormat | JsonObjectFormat | JsonSchemaFormat | None:
    given = text.format if text else None
    return given.of_chat if isinstance(given, FlatSchemaFormat) else given
