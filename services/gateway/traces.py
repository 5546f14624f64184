"""The trace of one request at the gateway (docs/traces.md).

Invariant: nothing here runs for a token. The spans of a session are written when its request is over, from the times
that the session keeps. No span holds text of a prompt or an answer, nor anything else of a body that a client words.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Protocol

from aiohttp import web

from services.gateway.admission.gate import AdmissionTicket
from services.gateway.bodies.chat_body import ChatBody
from services.gateway.errors import ApiError, SessionFailed, answer_to
from services.gateway.http.parsing import AnyBody
from services.gateway.session.generation import Generation
from services.gateway.session.session import Session
from shared.runtime import semconv
from shared.runtime.tracing import TraceSpan, Tracing, Value

BROKEN_OFF = "broken_off"  # a stream that ended early: its client left, or its deadline passed
CANCELLED = "cancelled"  # the client left before the answer began


class RequestTrace(Protocol):
    """What a handler tells of a request that generates."""

    def read(self) -> None:
        """The body has arrived."""
        ...

    def tokenised(self, body: AnyBody, num_tokens: int) -> None:
        """The body is parsed and its prompts have so many tokens."""
        ...

    def admitted(self, ticket: AdmissionTicket, generations: Sequence[Generation]) -> Sequence[Generation]:
        """The request has its slots. Returns what its sessions generate, with their spans."""
        ...

    def answered(self, status: int) -> None:
        """The answer has been sent with this HTTP status."""
        ...


class _NoTrace:
    """The trace of a request that is not sampled."""

    def read(self) -> None: ...

    def tokenised(self, body: AnyBody, num_tokens: int) -> None: ...

    def admitted(self, ticket: AdmissionTicket, generations: Sequence[Generation]) -> Sequence[Generation]:
        return generations

    def answered(self, status: int) -> None: ...


NO_TRACE = _NoTrace()


@contextmanager
def traced(tracing: Tracing, request: web.Request, model: str) -> Iterator[RequestTrace]:
    """The trace of a request whose handler is the block."""
    now = time.monotonic()
    span = tracing.accept(request.headers, request.path, now)
    if span is None:
        yield NO_TRACE
        return
    trace = _SampledTrace(span, request, model, now)
    try:
        yield trace
    except BaseException as error:
        trace.fail(error)
        raise
    finally:
        trace.end(time.monotonic())


class _SampledTrace:
    """The trace of a sampled request."""

    def __init__(self, span: TraceSpan, request: web.Request, model: str, asked_at: float) -> None:
        self._span = span
        self._asked_at = self._since = asked_at
        self._stage = semconv.READ  # under way since then
        self._ticket: AdmissionTicket | None = None
        self._spans: list[TraceSpan] = []  # of the sessions
        self._error = ""
        self._attributes: dict[str, Value] = {
            semconv.PROVIDER_NAME: semconv.PROVIDER,
            semconv.REQUEST_MODEL: model,
            semconv.METHOD: request.method,
            semconv.ROUTE: request.path,
        }

    # --- as the request goes on -----------------------------------------------------------------------------------

    def read(self) -> None:
        self._begin_stage(semconv.TOKENISE)

    def tokenised(self, body: AnyBody, num_tokens: int) -> None:
        operation = semconv.CHAT if isinstance(body, ChatBody) else semconv.TEXT_COMPLETION
        asked: dict[str, Value | None] = {
            semconv.OPERATION_NAME: operation,
            semconv.REQUEST_CHOICES: body.num_choices,
            semconv.REQUEST_STREAM: bool(body.stream),
            semconv.REQUEST_MAX_TOKENS: body.limit,
            semconv.REQUEST_SEED: body.seed,
            semconv.REQUEST_TEMPERATURE: body.temperature,
            semconv.REQUEST_TOP_P: body.top_p,
        }
        self._attributes |= {name: value for name, value in asked.items() if value is not None}
        self._attributes[semconv.INPUT_TOKENS] = num_tokens
        self._span.rename(f"{operation} {self._attributes[semconv.REQUEST_MODEL]}")
        self._begin_stage(semconv.QUEUED)

    def admitted(self, ticket: AdmissionTicket, generations: Sequence[Generation]) -> list[Generation]:
        self._begin_stage(semconv.SESSION)
        self._ticket = ticket
        self._spans = [
            self._span.begin(
                semconv.SESSION, self._since, {semconv.SESSION_ID: each.session_id, semconv.CHOICE: number}
            )
            for number, each in enumerate(generations)
        ]
        return [
            replace(each, traceparent=span.traceparent) for each, span in zip(generations, self._spans, strict=True)
        ]

    def answered(self, status: int) -> None:
        self._attributes[semconv.STATUS] = status

    def fail(self, error: BaseException) -> None:
        if isinstance(error, ApiError | SessionFailed):
            answer = answer_to(error)
            self._error = answer.code or str(answer.status)
            self._attributes[semconv.STATUS] = answer.status
        elif isinstance(error, web.HTTPException):
            self._error, self._attributes[semconv.STATUS] = str(error.status), error.status
        elif isinstance(error, asyncio.CancelledError):
            self._error = CANCELLED
        else:
            self._error, self._attributes[semconv.STATUS] = type(error).__name__, 500

    # --- at its end -----------------------------------------------------------------------------------------------

    def end(self, now: float) -> None:
        sessions = self._ticket.sessions if self._ticket else []
        if not self._spans:
            self._span.record(self._stage, self._since, now)
        for span in self._spans[len(sessions) :]:  # their sessions have not begun
            span.end(now, error=self._error)
        texts = [_Story(session, self._since, now) for session in sessions]
        for span, text in zip(self._spans, texts, strict=False):
            text.write(span)
        if texts:
            self._sum_up(texts)
            sent_from = max(text.end for text in texts)
            self._span.record(semconv.SEND, min(sent_from, now), now)
        if self._error and self._attributes.get(semconv.STATUS, 0) in range(400, 500):  # the client's error, not ours
            self._attributes[semconv.ERROR_TYPE], self._error = self._error, ""
        self._span.end(now, self._attributes, self._error)

    def _begin_stage(self, stage: str) -> None:
        now = time.monotonic()
        self._span.record(self._stage, self._since, now)
        self._stage, self._since = stage, now

    def _sum_up(self, texts: Sequence[_Story]) -> None:
        """What holds for all sessions together."""
        self._attributes[semconv.OUTPUT_TOKENS] = sum(text.session.num_tokens for text in texts)
        self._attributes[semconv.RESPONSE_FINISH_REASONS] = [text.finish for text in texts if text.finish]
        first_at = min((text.first_at for text in texts if text.first_at is not None), default=None)
        if first_at is not None:
            self._attributes[semconv.TIME_TO_FIRST_CHUNK] = round(first_at - self._asked_at, 6)
        self._error = self._error or next((text.error for text in texts if text.error), "")


class _Story:
    """What became of one session that was opened at `begun` and is over."""

    def __init__(self, session: Session, begun: float, now: float) -> None:
        growth = session.stream.growth
        self.session = session
        self.finish = session.stream.finish or ("stop" if session.num_shown is not None else "")
        self.error = session.failure.code if session.failure else "" if self.finish else BROKEN_OFF
        self.first_at = growth[0].first_at if growth else None
        self.end = growth[-1].newest_at if growth and self.finish else now
        self._begun = begun

    def write(self, span: TraceSpan) -> None:
        """The spans of the session, which end its own."""
        generation, tally = self.session.generation, self.session.tallies.total
        first_at = self.end if self.first_at is None else self.first_at
        span.record(semconv.PREFILL, self._begun, first_at, {semconv.INPUT_TOKENS: len(generation.prompt_ids)})
        counts = {
            semconv.OUTPUT_TOKENS: self.session.num_tokens,
            semconv.NUM_PASSES: tally.num_passes,
            semconv.ACCEPTED: tally.accepted,
            semconv.REJECTED: tally.rejected,
            semconv.LATE: tally.late,
            semconv.DISCARDED: tally.discarded,
            semconv.LOOKED_UP: tally.looked_up,
        }
        if self.first_at is not None:
            span.record(semconv.DECODE, self.first_at, self.end, counts)
        self._write_changes(span)
        about: dict[str, Value] = {
            semconv.VERIFIER: self.session.verifier_id or "",
            semconv.DRAFTER: self.session.drafter_id or "",
            semconv.SPECULATION: generation.speculation.mode if generation.speculation else "off",
            semconv.FINGERPRINTS: self.session.fingerprints,
            semconv.NUM_FAILOVERS: self.session.num_failovers,
            semconv.NUM_REBINDINGS: max(0, len(self.session.bindings) - 1),
            semconv.NUM_POLLS: self.session.stream.num_polls,
        }
        span.end(self.end, {**about, **counts}, self.error)

    def _write_changes(self, span: TraceSpan) -> None:
        """Changes of the verifier are spans: from the last token before to the first one after. Others are events."""
        growth = self.session.stream.growth
        for old, new in pairwise(self.session.bindings):
            peers: dict[str, Value] = {semconv.TERM: new.term, semconv.VERIFIER: new.verifier_id}
            peers[semconv.DRAFTER] = new.drafter_id or ""
            if new.verifier_id == old.verifier_id:
                span.event(semconv.REBOUND, new.at, peers)
                continue
            before = max((each.newest_at for each in growth if each.term <= old.term), default=old.at)
            after = min((each.first_at for each in growth if each.term >= new.term), default=self.end)
            span.record(semconv.FAILOVER, before, after, {**peers, semconv.LOST_VERIFIER: old.verifier_id})
