"""Answers of POST /v1/responses in OpenAI's shapes: the response, its output items, and the events of a stream.

The response that ends an answer has the `dsd` object of every endpoint (docs/api.md).
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from services.gateway.http.response_models import DsdReport, RequestMetrics

ItemStatus: TypeAlias = Literal["in_progress", "completed", "incomplete"]
ResponseStatus: TypeAlias = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    text: str
    annotations: list[None] = []
    logprobs: list[None] = []


class ReasoningText(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    text: str


class OutputItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    id: str
    status: ItemStatus


class OutputMessage(OutputItem, frozen=True, kw_only=True, tag="message"):
    """content: one text, or empty where it has not begun."""

    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class OutputReasoning(OutputItem, frozen=True, kw_only=True, tag="reasoning"):
    content: list[ReasoningText]
    summary: list[None] = []


class OutputCall(OutputItem, frozen=True, kw_only=True, tag="function_call"):
    """arguments: JSON as the model wrote it."""

    call_id: str
    name: str
    arguments: str


AnyOutput: TypeAlias = OutputMessage | OutputReasoning | OutputCall
AnyContent: TypeAlias = OutputText | ReasoningText


class InputDetails(msgspec.Struct, frozen=True):
    """OpenAI's; this gateway does not learn what a verifier has cached."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    output_tokens_details: OutputDetails
    input_tokens_details: InputDetails = InputDetails()


class IncompleteDetails(msgspec.Struct, frozen=True):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(msgspec.Struct, frozen=True):
    """code: OpenAI's; the message tells more."""

    message: str
    code: Literal["server_error"] = "server_error"


class TextSettings(msgspec.Struct, frozen=True):
    format: dict[str, Any]


class ReasoningSettings(msgspec.Struct, frozen=True):
    effort: str | None
    summary: None = None


class ResponseSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, and the fields of OpenAI's that are the same in each response here."""

    model: str
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    reasoning: ReasoningSettings
    temperature: float
    text: TextSettings
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    background: bool = False
    previous_response_id: None = None
    service_tier: Literal["default"] = "default"
    top_logprobs: int = 0
    truncation: Literal["disabled"] = "disabled"


class Response(ResponseSettings, frozen=True, kw_only=True):
    """usage, dsd and metrics: once the answer is complete."""

    id: str
    created_at: int
    status: ResponseStatus
    system_fingerprint: str
    output: list[AnyOutput]
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    usage: ResponseUsage | None = None
    dsd: DsdReport | UnsetType = UNSET
    metrics: RequestMetrics | UnsetType | None = UNSET
    object: Literal["response"] = "response"


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """sequence_number: from 0, without gaps."""

    sequence_number: int


class ResponseEvent(Event, frozen=True, kw_only=True):
    response: Response


class ResponseCreated(ResponseEvent, frozen=True, kw_only=True, tag="response.created"):
    pass


class ResponseInProgress(ResponseEvent, frozen=True, kw_only=True, tag="response.in_progress"):
    pass


class ResponseCompleted(ResponseEvent, frozen=True, kw_only=True, tag="response.completed"):
    pass


class ResponseIncomplete(ResponseEvent, frozen=True, kw_only=True, tag="response.incomplete"):
    pass


class ResponseFailed(ResponseEvent, frozen=True, kw_only=True, tag="response.failed"):
    pass


class ItemEvent(Event, frozen=True, kw_only=True):
    output_index: int
    item: AnyOutput


class OutputItemAdded(ItemEvent, frozen=True, kw_only=True, tag="response.output_item.added"):
    pass


class OutputItemDone(ItemEvent, frozen=True, kw_only=True, tag="response.output_item.done"):
    pass


class InItem(Event, frozen=True, kw_only=True):
    """What happens inside an item."""

    output_index: int
    item_id: str


class InContent(InItem, frozen=True, kw_only=True):
    content_index: int = 0


class ContentPartAdded(InContent, frozen=True, kw_only=True, tag="response.content_part.added"):
    part: AnyContent


class ContentPartDone(InContent, frozen=True, kw_only=True, tag="response.content_part.done"):
    part: AnyContent


class OutputTextDelta(InContent, frozen=True, kw_only=True, tag="response.output_text.delta"):
    delta: str
    logprobs: list[None] = []


class OutputTextDone(InContent, frozen=True, kw_only=True, tag="response.output_text.done"):
    text: str
    logprobs: list[None] = []


class ReasoningTextDelta(InContent, frozen=True, kw_only=True, tag="response.reasoning_text.delta"):
    delta: str


class ReasoningTextDone(InContent, frozen=True, kw_only=True, tag="response.reasoning_text.done"):
    text: str


class CallArgumentsDelta(InItem, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"):
    delta: str


class CallArgumentsDone(InItem, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    arguments: str


EVENTS: tuple[type[Event], ...] = (
    ResponseCreated,
    ResponseInProgress,
    OutputItemAdded,
    ContentPartAdded,
    ReasoningTextDelta,
    ReasoningTextDone,
    OutputTextDelta,
    OutputTextDone,
    CallArgumentsDelta,
    CallArgumentsDone,
    ContentPartDone,
    OutputItemDone,
    ResponseCompleted,
    ResponseIncomplete,
    ResponseFailed,
)


def event_bytes(event: Event) -> bytes:
    """As a server-sent event."""
    name = str(type(event).__struct_config__.tag).encode()
    return b"event: " + name + b"\ndata: " + msgspec.json.encode(event) + b"\n\n"
