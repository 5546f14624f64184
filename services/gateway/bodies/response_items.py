"""Items of a conversation in OpenAI's Responses API: what clients send as `input`, and the messages of a chat that they
stand for.

Invariant: an answer's output items, sent back, are the one message that a chat's answer has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from services.gateway.bodies.body import Body, ShortText
from services.gateway.bodies.chat_body import MAX_MESSAGES, MAX_PARTS, FunctionCall, MessageBody, TextPart, ToolCall

Status = Literal["in_progress", "completed", "incomplete"]
Nothing = Annotated[list[Any], Field(max_length=0)]


class InputText(Body):
    """A part of a message. Those of an answer may be sent back unchanged."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Nothing | None = None
    logprobs: Nothing | None = None


def _as_parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "input_text", "text": value}]
    if not isinstance(value, list):
        raise PydanticCustomError("content", "must be a string or a list of text parts")
    return value


_Parts = Annotated[list[InputText], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
Parts = Annotated[_Parts, BeforeValidator(_as_parts, str | _Parts)]


class InputMessage(Body):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Parts
    id: ShortText | None = None
    status: Status | None = None
    phase: None = None


class InputCall(Body):
    """A call in an earlier answer."""

    type: Literal["function_call"]
    call_id: ShortText
    name: ShortText
    arguments: str
    id: ShortText | None = None
    status: Status | None = None


class InputCallOutput(Body):
    """What a called function has returned."""

    type: Literal["function_call_output"]
    call_id: ShortText
    output: Parts
    id: ShortText | None = None
    status: Status | None = None


class ReasoningPart(Body):
    type: Literal["reasoning_text"]
    text: str


class InputReasoning(Body):
    """Reasoning of an earlier answer; this gateway writes no summaries and encrypts nothing."""

    type: Literal["reasoning"]
    content: Annotated[list[ReasoningPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    summary: Nothing | None = None
    encrypted_content: None = None
    id: ShortText | None = None
    status: Status | None = None


ITEMS: dict[str, type[Body]] = {
    "message": InputMessage,
    "function_call": InputCall,
    "function_call_output": InputCallOutput,
    "reasoning": InputReasoning,
}


def _item_type(value: Any) -> str | None:
    found = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", None)
    return found if isinstance(found, str) else None


AnyItem: TypeAlias = InputMessage | InputCall | InputCallOutput | InputReasoning
Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputCallOutput, Tag("function_call_output")]
    | Annotated[InputReasoning, Tag("reasoning")],
    Discriminator(_item_type),
]


def _as_items(value: Any) -> Any:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise PydanticCustomError("input", "must be a string or a list of items")
    return value


MAX_ITEMS = MAX_MESSAGES - 1  # and a message with the instructions
_Items = Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
Items = Annotated[_Items, BeforeValidator(_as_items, str | _Items)]


@dataclass
class _Turn:
    """One message of the assistant, put together."""

    reasoning: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    def is_before(self, item: AnyItem) -> bool:
        """Whether the item begins another message. Text behind a call is still of the same one."""
        if isinstance(item, InputReasoning):
            return bool(self.texts or self.calls)
        if isinstance(item, InputCall):
            return len(self.calls) == MAX_PARTS
        return isinstance(item, InputMessage) and bool(self.texts) and not self.calls

    def add(self, item: AnyItem) -> None:
        match item:
            case InputReasoning():
                self.reasoning += [part.text for part in item.content or ()]
            case InputMessage():
                self.texts.append(_joined(item.content))
            case InputCall():
                self.calls.append(ToolCall(id=item.call_id, function=_function(item)))

    @property
    def message(self) -> MessageBody:
        has_content = self.texts or not self.calls
        return MessageBody(
            role="assistant",
            content=[TextPart(type="text", text="".join(self.texts))] if has_content else None,
            reasoning_content="".join(self.reasoning) or None,
            tool_calls=self.calls or None,
        )


def chat_messages(items: Sequence[AnyItem]) -> list[MessageBody]:
    """The same as messages of a chat: items of the assistant that follow each other are one message."""
    messages: list[MessageBody] = []
    turn: _Turn | None = None
    for item in items:
        is_own = not isinstance(item, InputCallOutput) and getattr(item, "role", "assistant") == "assistant"
        if turn is not None and (not is_own or turn.is_before(item)):
            messages.append(turn.message)
            turn = None
        if is_own:
            turn = turn or _Turn()
            turn.add(item)
        else:
            messages.append(_other(item))
    return messages if turn is None else [*messages, turn.message]


def _other(item: AnyItem) -> MessageBody:
    """A message of anyone but the assistant."""
    if isinstance(item, InputCallOutput):
        return MessageBody(role="tool", content=_text_parts(item.output), tool_call_id=item.call_id)
    assert isinstance(item, InputMessage)
    return MessageBody(role=item.role, content=_text_parts(item.content))


def _text_parts(parts: Sequence[InputText]) -> list[TextPart]:
    return [TextPart(type="text", text=part.text) for part in parts]


def _joined(parts: Sequence[InputText]) -> str:
    """As a chat joins the parts of a message."""
    return "\n".join(part.text for part in parts)


def _function(call: InputCall) -> FunctionCall:
    return FunctionCall(name=call.name, arguments=call.arguments)
