"""The body of POST /v1/chat/completions: a conversation, the tools for it, and how to answer it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from services.gateway.bodies.answer_format import check_kept
from services.gateway.bodies.body import Body, ShortText, blame
from services.gateway.bodies.generation_body import GenerationBody, MaxTokens, Off
from services.gateway.formats.registry import ToolUse
from services.gateway.http.json_reader import read_objects
from services.gateway.text.chat_template import ChatMessage, Conversation
from shared.protocol.messages import MAX_TOP_LOGPROBS

MAX_MESSAGES = 4096
MAX_PARTS = 1024  # of one message
MAX_TOOLS = 128
MAX_OPTIONS = 16  # of a chat template
RESERVED = {"messages", "tools", "documents", "add_generation_prompt"}  # of a template, with fields of their own
RESERVED |= {f"{name}_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")}  # the tokenizer's


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
    parsed_arguments: Any = None  # as OpenAI's client has read them


class ToolCall(Body):
    """A call in an earlier answer."""

    id: ShortText
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None  # of a streamed answer

    def field(self, arguments: dict[str, Any] | str) -> dict[str, Any]:
        """What a chat template gets. arguments: the object in them, or their text."""
        function = {"name": self.function.name, "arguments": arguments}
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
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # vLLM's newer name of the same
    parsed: Any = None  # the content, as OpenAI's client has read it
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise blame("content", "content is missing")
        if self.tool_calls and self.role != "assistant":
            raise blame("tool_calls", "tool_calls is only allowed in a message of the assistant")
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise blame("tool_call_id", "tool_call_id must be given in a message of a tool, and in no other")
        return self

    def message(self, arguments: Iterator[dict[str, Any] | str]) -> ChatMessage:
        """arguments: of its calls."""
        role = "system" if self.role == "developer" else self.role
        content = None if self.content is None else "\n".join(part.text for part in self.content)
        calls = [call.field(next(arguments)) for call in self.tool_calls or ()]
        return ChatMessage(role, content, self._fields(calls))

    def _fields(self, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """What a chat template may use besides role and content, under the names that templates know."""
        given = {
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "tool_calls": calls or None,
            "reasoning_content": self.reasoning_content or self.reasoning,
        }
        return {name: value for name, value in given.items() if value is not None}


FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


Parameters = Annotated[dict[str, Any], AfterValidator(check_kept)]


class FunctionTool(Body):
    """parameters: JSON Schema of the arguments; None: there are none."""

    name: FunctionName
    description: str | None = None
    parameters: Parameters | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: FunctionTool

    @property
    def field(self) -> dict[str, Any]:
        """What a chat template gets."""
        function = self.function.model_dump(exclude_none=True, exclude={"strict"})
        return {"type": self.type, "function": function}


class NamedFunction(Body):
    name: FunctionName


class NamedTool(Body):
    """The only function that may be called."""

    type: Literal["function"]
    function: NamedFunction


ChoiceWord = Literal["none", "auto", "required"]


def choice_validator(named: type[Body], form: str) -> BeforeValidator:
    """Of a word or a named tool: one error, whatever is wrong. form: of the named tool."""

    def read(value: Any) -> Any:
        try:
            return value if value is None or value in get_args(ChoiceWord) else named.model_validate(value)
        except ValidationError as error:
            message = f'must be "none", "auto", "required" or {form}'
            raise PydanticCustomError("tool_choice", "{message}", {"message": message}) from error

    return BeforeValidator(read, ChoiceWord | named)


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)]
NAMED_CHOICE = choice_validator(NamedTool, '{"type": "function", "function": {"name": …}}')
ToolChoice = Annotated[ChoiceWord | NamedTool, NAMED_CHOICE]


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


def messages_of(turns: Sequence[MessageBody]) -> list[ChatMessage]:
    """What a chat template gets."""
    calls = (call for turn in turns for call in turn.tool_calls or ())
    arguments = iter(read_objects(call.function.arguments for call in calls))
    return [turn.message(arguments) for turn in turns]


class ChatBody(GenerationBody):
    """POST /v1/chat/completions"""

    unoffered: ClassVar[frozenset[str]] = GenerationBody.unoffered | {"add_special_tokens", "echo"}

    messages: list[MessageBody] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    add_special_tokens: Off | None = None
    max_completion_tokens: MaxTokens = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: Off | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: TemplateOptions = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            raise blame("max_tokens", "max_tokens and max_completion_tokens must be equal where both are given")
        return self

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise blame("top_logprobs", "top_logprobs is only allowed when logprobs is true")
        return self

    @model_validator(mode="after")
    def _chosen_tools_are_there(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise blame("tools", "tools must have different names")
        if not names and self.tool_choice not in (None, "none", "auto"):
            raise blame("tool_choice", "tool_choice is only allowed with tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise blame("tool_choice", f"tool_choice names no tool of tools: {self.tool_choice.function.name!r}")
        if self.tool_use and super().asks_for_format and self.schema_of_answer is None:
            raise blame("tools", "tools are only allowed with text or JSON as the format of the answer")
        return self

    @cached_property
    def conversation(self) -> Conversation:
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        messages = messages_of(self.messages)
        tools = [tool.field for tool in self.tools or ()] if self.tool_use else []
        return Conversation(messages, effort | (self.chat_template_kwargs or {}), tools)

    @property
    def prompt_field(self) -> str:
        return "messages"

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def limit_field(self) -> str:
        return "max_completion_tokens" if self.max_tokens is None else "max_tokens"

    @property
    def tool_use(self) -> ToolUse | None:
        """Which tools the answer may call; None: none."""
        if not self.tools or self.tool_choice == "none":
            return None
        return ToolUse(frozenset(tool.function.name for tool in self.tools), self.may_repeat_calls)

    @property
    def may_repeat_calls(self) -> bool:
        """Whether an answer may have several calls. A function that is named is called once, as OpenAI does."""
        return self.parallel_tool_calls is not False and not isinstance(self.tool_choice, NamedTool)

    @property
    def asks_for_format(self) -> bool:
        return super().asks_for_format or bool(self.must_call)

    @property
    def must_call(self) -> dict[str, dict[str, Any] | None]:
        """The tools of which the answer must call one, with the schemas of their arguments; empty: it need not."""
        return {} if self.tool_choice in (None, "none", "auto") else self.may_call

    @property
    def may_call(self) -> dict[str, dict[str, Any] | None]:
        """The tools that the answer may call, with the schemas of their arguments."""
        if self.tool_use is None:
            return {}
        functions = {tool.function.name: tool.function.parameters for tool in self.tools or ()}
        if isinstance(self.tool_choice, NamedTool):
            return {self.tool_choice.function.name: functions.get(self.tool_choice.function.name)}
        return functions

    @property
    def ignored(self) -> list[str]:
        names = [name for name in super().ignored if not (self.tools and name == "parallel_tool_calls")]
        is_loose = any(tool.function.strict for tool in self.tools or ()) and not self.must_call
        return [*names, *(["tools.strict"] if is_loose else [])]

    @property
    def num_top(self) -> int | None:
        """How many of the likeliest tokens to report at each position; None: no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None
