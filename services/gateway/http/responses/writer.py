"""One answer as bytes in the shape of OpenAI's Responses API: a whole response, or a stream's events (docs/api.md).

Invariant: a stream ends with the response that a whole answer is, or with one that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, count
from typing import Any

import msgspec

from services.gateway.bodies.responses_body import ResponsesBody
from services.gateway.errors import ApiError
from services.gateway.http.response_models import DsdReport, FinishReason, RequestMetrics, Usage
from services.gateway.http.response_writer import WholeAnswer
from services.gateway.http.responses.models import (
    Event,
    IncompleteDetails,
    OutputDetails,
    ReasoningSettings,
    Response,
    ResponseCompleted,
    ResponseCreated,
    ResponseError,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseSettings,
    ResponseStatus,
    ResponseUsage,
    TextSettings,
    event_bytes,
)
from services.gateway.http.responses.output import Output
from services.gateway.text.output_text import Piece

OPENING = (ResponseCreated, ResponseInProgress)


class ResponsesWriter:
    """Writes the only answer to a request."""

    tells_usage_so_far = False

    def __init__(self, body: ResponsesBody, session_id: str, created: int, fingerprint: Callable[[], str]) -> None:
        self.session_id = session_id
        self._created = created
        self._fingerprint = fingerprint
        self._settings = msgspec.structs.asdict(settings_of(body))
        self._numbers = count()
        self._output = Output(session_id, self._numbers)
        self._ending: dict[str, Any] = {}  # what the last response tells besides its status and usage
        self._status: ResponseStatus = "completed"

    def opening(self, num_choices: int) -> bytes:
        response = self._response("in_progress")
        return _joined(kind(sequence_number=next(self._numbers), response=response) for kind in OPENING)

    def piece(self, index: int, piece: Piece, window: int | None, so_far: Usage | None) -> bytes:
        return _joined(chain.from_iterable(self._output.add(part) for part in piece.parts))

    def ending(
        self, index: int, finish: FinishReason, report: DsdReport, metrics: RequestMetrics, so_far: Usage | None
    ) -> bytes:
        return _joined(self._end(finish, report, metrics))

    def closing(self, usage: Usage, metrics: RequestMetrics | None) -> bytes:
        kind = ResponseIncomplete if self._status == "incomplete" else ResponseCompleted
        return event_bytes(kind(sequence_number=next(self._numbers), response=self._complete(usage)))

    def failure(self, error: ApiError) -> bytes:
        response = self._response("failed", error=ResponseError(error.message))
        return event_bytes(ResponseFailed(sequence_number=next(self._numbers), response=response))

    def whole(
        self, answers: Sequence[WholeAnswer], usage: Usage, report: DsdReport, metrics: RequestMetrics | None
    ) -> bytes:
        (answer,) = answers
        for part in answer.message.parts:
            self._output.add(part)
        self._end(answer.finish, report, metrics)
        return msgspec.json.encode(self._complete(usage))

    def _end(self, finish: FinishReason, report: DsdReport, metrics: RequestMetrics | None) -> list[Event]:
        self._ending = {"dsd": report, "metrics": metrics}
        if finish == "length":
            self._status = "incomplete"
            self._ending["incomplete_details"] = IncompleteDetails()
        return self._output.end("incomplete" if finish == "length" else "completed")

    def _complete(self, usage: Usage) -> Response:
        """The response at the end of the answer."""
        return self._response(self._status, usage=_usage(usage), **self._ending)

    def _response(self, status: ResponseStatus, **more: Any) -> Response:
        return Response(
            **self._settings,
            id=f"resp_{self.session_id}",
            created_at=self._created,
            status=status,
            system_fingerprint=self._fingerprint(),
            output=self._output.items,
            **more,
        )


def settings_of(body: ResponsesBody) -> ResponseSettings:
    """What a response repeats of the request."""
    form = body.text.format if body.text else None
    choice = body.tool_choice or "auto"
    return ResponseSettings(
        model=body.model,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        parallel_tool_calls=body.parallel_tool_calls is not False,
        reasoning=ReasoningSettings(body.reasoning.effort if body.reasoning else None),
        temperature=1.0 if body.temperature is None else body.temperature,
        text=TextSettings({"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_unset=True)),
        tool_choice=choice if isinstance(choice, str) else choice.model_dump(),
        tools=[tool.model_dump() for tool in body.tools or ()],
        top_p=1.0 if body.top_p is None else body.top_p,
    )


def _usage(usage: Usage) -> ResponseUsage:
    details = OutputDetails(usage.completion_tokens_details.reasoning_tokens)
    return ResponseUsage(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, details)


def _joined(events: Iterable[Event]) -> bytes:
    return b"".join(map(event_bytes, events))
