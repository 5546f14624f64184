"""The OpenAI endpoints over HTTP: /v1/chat/completions, /v1/completions, /v1/models.

Invariant: whatever a client sends or however it leaves, it gets one answer in OpenAI's shape or none, and its session
is closed. A handler is cancelled when its client leaves (the runner's handler_cancellation).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from services.gateway.admission import Admission
from services.gateway.answer import Answer
from services.gateway.api import ChatBody, CompletionBody, GenerationBody, parse
from services.gateway.errors import ApiError, SessionFailed, of_failure
from services.gateway.metrics import GatewayMetrics
from services.gateway.replies import DONE, ChatDialect, CompletionDialect, Dialect, Model, ModelList, Voice
from services.gateway.sessions import Full, LiveSession, Sessions
from shared.messages import TokenIds

log = structlog.get_logger(__name__)

EVENT_STREAM = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
SEED_HEADER = "X-DSD-Seed"


class ClientGone(Exception):
    """The client has left, or takes nothing any more."""


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with once the gateway has started."""

    sessions: Sessions
    admission: Admission
    metrics: GatewayMetrics


class Routes:
    """Handlers of all endpoints; they answer 503 until `open` and after `close`."""

    def __init__(self, client_timeout_s: float) -> None:
        self._client_timeout_s = client_timeout_s
        self._service: Service | None = None
        self._closed = "the gateway is starting"
        self._started_at = int(time.time())

    def open(self, sessions: Sessions, admission: Admission, metrics: GatewayMetrics) -> None:
        """Lets requests in."""
        self._service = Service(sessions, admission, metrics)
        self._closed = ""

    def close(self, reason: str) -> None:
        """Refuses new requests; those under way go on."""
        self._closed = reason

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name:.+}", self._model)

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turns every error of an API endpoint into OpenAI's shape, and counts the answers."""
        if not request.path.startswith("/v1/"):
            return await handler(request)
        try:
            response = await handler(request)
        except ApiError as error:
            response = _error_response(error)
        except SessionFailed as failure:
            response = _error_response(of_failure(failure))
        except web.HTTPException as error:
            response = _error_response(ApiError(error.status, _told(error)))
        except Exception:
            log.exception("request failed", path=request.path)
            response = _error_response(ApiError(500, "The gateway failed on this request", code="internal"))
        if self._service is not None:
            resource = request.match_info.route.resource
            endpoint = resource.canonical if resource else "none"
            self._service.metrics.requests.labels(endpoint, str(response.status)).inc()
        return response

    # --- handlers --------------------------------------------------------------------------------------------------

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, ChatBody, ChatDialect())

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, CompletionBody, CompletionDialect())

    async def _models(self, request: web.Request) -> web.Response:
        return _json_response(msgspec.json.encode(ModelList([self._describe(self._entered())])))

    async def _model(self, request: web.Request) -> web.Response:
        service = self._entered()
        service.admission.check_model(request.match_info["name"])
        return _json_response(msgspec.json.encode(self._describe(service)))

    async def _generate(self, request: web.Request, kind: type[GenerationBody], dialect: Dialect) -> web.StreamResponse:
        asked_at = time.monotonic()
        service = self._entered()
        raw = await self._read(request)
        body, prompt_ids = await asyncio.to_thread(_prepare, service.admission, kind, raw)
        self._entered()
        generation = service.admission.order(body, prompt_ids, time.monotonic())
        try:
            async with service.sessions.live(generation) as live:
                await live.opened()
                text = service.admission.tokenizer.answer(prompt_ids, body.stop or ())
                answer = Answer(live, text, asked_at, service.metrics)
                voice = self._voice(live, dialect, streams_usage=body.includes_usage)
                if body.stream:
                    return await self._stream(request, answer, voice, _seed_header(live))
                return await self._whole(answer, voice, _seed_header(live))
        except Full as error:
            raise ApiError(
                429, f"All {service.sessions.max_sessions} sessions are in use", code="overloaded"
            ) from error

    async def _whole(self, answer: Answer, voice: Voice, headers: dict[str, str]) -> web.Response:
        async with aclosing(answer.pieces()) as pieces:
            text = "".join([piece async for piece in pieces])
        return _json_response(voice.whole(text, answer.finish, answer.usage, answer.report), headers)

    async def _stream(
        self, request: web.Request, answer: Answer, voice: Voice, headers: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={**EVENT_STREAM, **headers})
        try:
            await self._taken(response.prepare(request))
            await self._write_events(response, answer, voice)
            await self._taken(response.write_eof())
        except ClientGone:
            log.info("client gone", session=voice.session_id)
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _write_events(self, response: web.StreamResponse, answer: Answer, voice: Voice) -> None:
        """The whole stream. Its status is sent, so that an error can only be told as an event."""
        try:
            await self._write(response, voice.opening())
            async with aclosing(answer.pieces()) as pieces:
                async for piece in pieces:
                    await self._write(response, voice.piece(piece))
            await self._write(response, voice.ending(answer.finish, answer.usage, answer.report))
        except SessionFailed as failure:
            log.warning("answer broken off", session=voice.session_id, why=str(failure))
            await self._write(response, _error_event(of_failure(failure)))
        except ClientGone:
            raise
        except Exception:
            log.exception("stream failed", session=voice.session_id)
            await self._write(response, _error_event(ApiError(500, "The gateway failed on this request")))

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        if data:
            await self._taken(response.write(data))

    async def _taken(self, writing: Awaitable[object]) -> None:
        """Raises ClientGone when the client has left or takes nothing for too long."""
        try:
            async with asyncio.timeout(self._client_timeout_s):
                await writing
        except (TimeoutError, ConnectionResetError) as error:
            raise ClientGone from error

    # --- helpers ---------------------------------------------------------------------------------------------------

    def _entered(self) -> Service:
        if self._service is None or self._closed:
            raise ApiError(503, f"Not available: {self._closed}", code="draining")
        return self._service

    async def _read(self, request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(self._client_timeout_s):
                return await request.read()
        except TimeoutError as error:
            raise ApiError(408, f"The body did not arrive within {self._client_timeout_s:g} s") from error

    def _describe(self, service: Service) -> Model:
        admission = service.admission
        context = admission.placement.fleet.max_context(admission.model_name, time.monotonic())
        return Model(admission.model_name, self._started_at, context)

    def _voice(self, live: LiveSession, dialect: Dialect, *, streams_usage: bool) -> Voice:
        session = live.session
        return Voice(
            dialect=dialect,
            session_id=session.session_id,
            created=int(time.time()),
            model=session.generation.model,
            fingerprint=session.fingerprint,
            streams_usage=streams_usage,
        )


def make_app(routes: Routes, max_body_bytes: int) -> web.Application:
    """The gateway's application; the runtime adds the health endpoints."""
    app = web.Application(client_max_size=max_body_bytes, middlewares=[routes.guard])
    routes.add_to(app)
    return app


def _prepare(admission: Admission, kind: type[GenerationBody], raw: bytes) -> tuple[GenerationBody, TokenIds]:
    """Runs in a thread: long bodies take a while to check and to encode."""
    body = parse(kind, raw)
    admission.check_model(body.model)
    return body, admission.encode(body)


def _seed_header(live: LiveSession) -> dict[str, str]:
    return {SEED_HEADER: str(live.session.generation.sampling.seed)}


def _json_response(body: bytes, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body, content_type="application/json", headers=headers)


def _error_response(error: ApiError) -> web.Response:
    return web.Response(status=error.status, body=error.body, content_type="application/json", headers=error.headers)


def _error_event(error: ApiError) -> bytes:
    return b"data: " + error.body + b"\n\n" + DONE


def _told(error: web.HTTPException) -> str:
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return error.text or "The body is too large"
    return {404: "There is no such endpoint", 405: "This endpoint takes another method"}.get(error.status, error.reason)
