"""HTTP responses: an answer in one piece, an answer as an event stream, or an error.

Invariant: a stream has an end, after an error too, unless its client has left. A client that reads nothing for
`client_timeout_s` counts as gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager

import msgspec
import structlog
from aiohttp import web

from services.gateway.admission.deadline import Deadline
from services.gateway.errors import ApiError, SessionFailed, answer_to
from services.gateway.formats.parts import AnswerMessage
from services.gateway.http.choices import Choices
from services.gateway.http.response_writer import AnswerWriter, WholeAnswer
from services.gateway.text.output_text import ScoredToken

log = structlog.get_logger(__name__)

EVENT_STREAM = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
PIECE_BYTES = 64 << 10  # of an answer in one piece; the client must read each within the client timeout


class ClientGone(Exception):
    """The client has left, or has stopped reading."""


def json_response(reply: msgspec.Struct, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=msgspec.json.encode(reply), content_type="application/json", headers=headers)


def error_response(error: ApiError) -> web.Response:
    return web.Response(status=error.status, body=error.body, content_type="application/json", headers=error.headers)


async def whole_answer(choices: Choices, writer: AnswerWriter) -> bytes:
    """The body of an answer in one piece, once all choices are complete."""
    messages = [AnswerMessage() for _ in choices.answers]
    tokens: list[list[ScoredToken]] = [[] for _ in choices.answers]
    async with aclosing(choices.pieces()) as pieces:
        async for each in pieces:
            if each.piece is not None:
                messages[each.index].add(each.piece.parts)
                tokens[each.index] += each.piece.tokens
    answers = [
        WholeAnswer(messages[i], tokens[i] if answer.scores_tokens else None, answer.finish)
        for i, answer in enumerate(choices.answers)
    ]
    return writer.whole(answers, choices.usage, choices.report, choices.metrics)


async def whole_response(
    request: web.Request, body: bytes, headers: dict[str, str], deadline: Deadline, client_timeout_s: float
) -> web.StreamResponse:
    """Sends an answer in one piece. With logprobs it may be larger than all buffers on the way. A client that has not
    taken it by the deadline counts as gone: its status is already sent."""
    response = web.StreamResponse(headers={"Content-Type": "application/json", **headers})
    response.content_length = len(body)
    async with _client_of(request, response, client_timeout_s) as client:
        try:
            async with deadline.kept():
                for start in range(0, len(body), PIECE_BYTES):
                    await client.write(body[start : start + PIECE_BYTES])
                await client.flush()
        except ApiError as error:
            raise ClientGone from error
    return response


async def streamed_response(
    request: web.Request,
    choices: Choices,
    writer: AnswerWriter,
    headers: dict[str, str],
    deadline: Deadline,
    client_timeout_s: float,
) -> web.StreamResponse:
    """Sends the choices piece by piece."""
    response = web.StreamResponse(headers={**EVENT_STREAM, **headers})
    async with _client_of(request, response, client_timeout_s) as client:
        await _write_events(client, choices, writer, deadline)
    return response


class _ClientConnection:
    """The client's end of a response. One timer watches all writes: a stream has one for each token."""

    def __init__(self, request: web.Request, response: web.StreamResponse, timeout_s: float) -> None:
        self._request = request
        self._response = response
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._waits_since: float | None = None
        self._watch = self._loop.call_later(timeout_s, self._look)

    async def write(self, data: bytes) -> None:
        if data:
            await self.wait_for(self._response.write(data))

    async def flush(self) -> None:
        """Returns once the kernel has all that was written. It keeps that beyond the end of the process."""
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ClientGone
        transport.set_write_buffer_limits(0)  # so that `drain` waits for the last byte
        await self.wait_for(self._request.writer.drain())
        transport.set_write_buffer_limits()

    async def wait_for(self, writing: Awaitable[object]) -> None:
        """Raises ClientGone when the client has left. `_look` ends a connection that reads nothing for the timeout."""
        self._waits_since = self._loop.time()
        try:
            await writing
        except ConnectionResetError as error:
            raise ClientGone from error
        finally:
            self._waits_since = None

    def end(self) -> None:
        """Watches no longer."""
        self._watch.cancel()

    def _look(self) -> None:
        """Ends the connection when a write has waited for the timeout, else looks when one may have."""
        now = self._loop.time()
        due = (now if self._waits_since is None else self._waits_since) + self._timeout_s
        if due > now:
            self._watch = self._loop.call_at(due, self._look)
        elif self._request.transport is not None:
            log.info("client gone", path=self._request.path)
            self._request.transport.abort()  # which cancels the handler


@asynccontextmanager
async def _client_of(
    request: web.Request, response: web.StreamResponse, timeout_s: float
) -> AsyncIterator[_ClientConnection]:
    """Begins and ends the response; aborts the connection when the client is gone."""
    client = _ClientConnection(request, response, timeout_s)
    try:
        await client.wait_for(response.prepare(request))
        yield client
        await client.wait_for(response.write_eof())
        await client.flush()
    except ClientGone:
        log.info("client gone", path=request.path)
        if request.transport is not None:
            request.transport.abort()
    finally:
        client.end()


async def _write_events(client: _ClientConnection, choices: Choices, writer: AnswerWriter, deadline: Deadline) -> None:
    """The whole stream. The status is already sent, so an error becomes an event."""
    try:
        async with deadline.kept():
            await _write_answer(client, choices, writer)
    except (ApiError, SessionFailed) as error:
        log.warning("answer broken off", session=writer.session_id, why=str(error))
        await client.write(writer.failure(answer_to(error)))
    except ClientGone:
        raise
    except Exception:
        log.exception("stream failed", session=writer.session_id)
        await client.write(writer.failure(ApiError(500, "The gateway failed on this request", code="internal")))


async def _write_answer(client: _ClientConnection, choices: Choices, writer: AnswerWriter) -> None:
    await client.write(writer.opening(len(choices.answers)))
    async with aclosing(choices.pieces()) as pieces:
        async for each in pieces:
            answer = choices.answers[each.index]
            so_far = choices.usage if writer.tells_usage_so_far else None
            if each.piece is not None:
                await client.write(writer.piece(each.index, each.piece, answer.window, so_far))
            else:
                ending = writer.ending(each.index, answer.finish, answer.report, answer.metrics, so_far)
                await client.write(ending)
    await client.write(writer.closing(choices.usage, choices.metrics))
