"""What goes back to a client: an answer in one piece, an answer as an event stream, or an error.

Invariant: a stream ends with `[DONE]`, also behind an error, unless its client has left. A client that takes nothing
for the client timeout has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager

import structlog
from aiohttp import web

from services.gateway.admission.deadline import Deadline
from services.gateway.errors import ApiError, SessionFailed, of_failure
from services.gateway.http.choices import Choices
from services.gateway.http.response_models import DONE
from services.gateway.http.response_writer import Voice
from services.gateway.text.output_text import ScoredToken

log = structlog.get_logger(__name__)

EVENT_STREAM = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
PIECE_BYTES = 64 << 10  # of a whole answer; each must be taken within the client timeout


class ClientGone(Exception):
    """The client has left, or takes nothing any more."""


def json_response(body: bytes, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body, content_type="application/json", headers=headers)


def error_response(error: ApiError) -> web.Response:
    return web.Response(status=error.status, body=error.body, content_type="application/json", headers=error.headers)


async def whole_answer(choices: Choices, voice: Voice) -> bytes:
    """All choices at once, when all are complete."""
    texts: list[list[str]] = [[] for _ in choices.answers]
    tokens: list[list[ScoredToken]] = [[] for _ in choices.answers]
    async with aclosing(choices.pieces()) as pieces:
        async for told in pieces:
            if told.piece is not None:
                texts[told.index].append(told.piece.text)
                tokens[told.index] += told.piece.tokens
    told_choices = [
        voice.choice(i, "".join(texts[i]), tokens[i] if answer.scores_tokens else None, answer.finish)
        for i, answer in enumerate(choices.answers)
    ]
    return voice.whole(told_choices, choices.usage, choices.report)


async def whole_response(
    request: web.Request, body: bytes, headers: dict[str, str], client_timeout_s: float
) -> web.StreamResponse:
    """An answer in one piece; with logprobs it may be larger than all buffers on the way."""
    response = web.StreamResponse(headers={"Content-Type": "application/json", **headers})
    response.content_length = len(body)
    async with _client_of(request, response, client_timeout_s) as client:
        for start in range(0, len(body), PIECE_BYTES):
            await client.write(body[start : start + PIECE_BYTES])
    return response


async def streamed_response(
    request: web.Request,
    choices: Choices,
    voice: Voice,
    headers: dict[str, str],
    deadline: Deadline,
    client_timeout_s: float,
) -> web.StreamResponse:
    """The choices piece by piece."""
    response = web.StreamResponse(headers={**EVENT_STREAM, **headers})
    async with _client_of(request, response, client_timeout_s) as client:
        await _write_events(client, choices, voice, deadline)
    return response


class _Client:
    """The other end of a stream."""

    def __init__(self, response: web.StreamResponse, timeout_s: float) -> None:
        self._response = response
        self._timeout_s = timeout_s

    async def write(self, data: bytes) -> None:
        if data:
            await self.taken(self._response.write(data))

    async def taken(self, writing: Awaitable[object]) -> None:
        """Raises ClientGone when the client has left or takes nothing for too long."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await writing
        except (TimeoutError, ConnectionResetError) as error:
            raise ClientGone from error


@asynccontextmanager
async def _client_of(request: web.Request, response: web.StreamResponse, timeout_s: float) -> AsyncIterator[_Client]:
    """Begins the response and ends it; breaks off, and the connection too, when the client is gone."""
    client = _Client(response, timeout_s)
    try:
        await client.taken(response.prepare(request))
        yield client
        await client.taken(response.write_eof())
    except ClientGone:
        log.info("client gone", path=request.path)
        if request.transport is not None:
            request.transport.abort()


async def _write_events(client: _Client, choices: Choices, voice: Voice, deadline: Deadline) -> None:
    """The whole stream. Its status is sent, so that an error can only be told as an event."""
    try:
        async with deadline.kept():
            await _write_answer(client, choices, voice)
    except ApiError as error:
        log.warning("answer broken off", session=voice.session_id, why=str(error))
        await client.write(_error_event(error))
    except SessionFailed as failure:
        log.warning("answer broken off", session=voice.session_id, why=str(failure))
        await client.write(_error_event(of_failure(failure)))
    except ClientGone:
        raise
    except Exception:
        log.exception("stream failed", session=voice.session_id)
        await client.write(_error_event(ApiError(500, "The gateway failed on this request", code="internal")))


async def _write_answer(client: _Client, choices: Choices, voice: Voice) -> None:
    await client.write(voice.opening(len(choices.answers)))
    async with aclosing(choices.pieces()) as pieces:
        async for told in pieces:
            answer = choices.answers[told.index]
            if told.piece is not None:
                await client.write(voice.piece(told.index, told.piece, answer.window))
            else:
                await client.write(voice.ending(told.index, answer.finish, answer.report))
    await client.write(voice.closing(choices.usage))


def _error_event(error: ApiError) -> bytes:
    return b"data: " + error.body + b"\n\n" + DONE
