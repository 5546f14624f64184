"""The OpenAI endpoints over HTTP: /v1/chat/completions, /v1/completions, /v1/models.

Invariant: whatever a client sends or however it leaves, it gets one answer in OpenAI's shape or none, and its session
is closed. A handler is cancelled when its client leaves (the runner's handler_cancellation).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from services.gateway.admission.gate import Entry
from services.gateway.errors import ApiError, SessionFailed, bad_request, of_failure
from services.gateway.http.answer import Answer
from services.gateway.http.auth import Door, asking_key
from services.gateway.http.chat_body import ChatBody
from services.gateway.http.choices import Choices, opened
from services.gateway.http.completion_body import CompletionBody
from services.gateway.http.fleet_api import WindowList, fleet_status, pair_windows
from services.gateway.http.formats import ChatDialect, CompletionDialect, Dialect
from services.gateway.http.openapi import openapi_document
from services.gateway.http.parsing import AnyBody, check_query, parse
from services.gateway.http.request_builder import Admission, Order, Prompt
from services.gateway.http.response_models import Model, ModelList
from services.gateway.http.response_writer import Voice
from services.gateway.http.streaming import (
    error_response,
    json_response,
    streamed_response,
    whole_answer,
    whole_response,
)
from services.gateway.metrics import GatewayMetrics
from services.gateway.session.manager import LiveSession, Sessions

log = structlog.get_logger(__name__)

SEED_HEADER = "X-DSD-Seed"
PLAIN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})  # the runtime's, in shapes of their own


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with once the gateway has started."""

    sessions: Sessions
    admission: Admission
    entry: Entry
    metrics: GatewayMetrics


class Routes:
    """Handlers of all endpoints; they answer 503 until `open` and after `close`."""

    def __init__(self, client_timeout_s: float) -> None:
        self._client_timeout_s = client_timeout_s
        self._service: Service | None = None
        self._closed = "the gateway is starting"
        self._started_at = int(time.time())

    def open(self, sessions: Sessions, admission: Admission, entry: Entry, metrics: GatewayMetrics) -> None:
        """Lets requests in."""
        self._service = Service(sessions, admission, entry, metrics)
        self._closed = ""

    def close(self, reason: str) -> None:
        """Refuses new requests; those under way go on."""
        self._closed = reason

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name:.+}", self._model)
        app.router.add_get("/dsd/fleet", self._fleet)
        app.router.add_get("/v1/dsd/windows", self._windows)
        app.router.add_get("/openapi.json", self._openapi)

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turns every error into OpenAI's shape, and counts the answers."""
        if request.path in PLAIN_PATHS:
            return await handler(request)
        try:
            response = await handler(request)
        except ApiError as error:
            response = error_response(error)
        except SessionFailed as failure:
            response = error_response(of_failure(failure))
        except web.HTTPException as error:
            response = error_response(ApiError(error.status, _told(error)))
            if "Allow" in error.headers:  # of a 405: the methods that there are
                response.headers["Allow"] = error.headers["Allow"]
        except Exception:
            log.exception("request failed", path=request.path)
            response = error_response(ApiError(500, "The gateway failed on this request", code="internal"))
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
        return json_response(msgspec.json.encode(ModelList([self._describe(self._entered())])))

    async def _model(self, request: web.Request) -> web.Response:
        service = self._entered()
        service.admission.check_model(request.match_info["name"])
        return json_response(msgspec.json.encode(self._describe(service)))

    async def _fleet(self, request: web.Request) -> web.Response:
        service = self._entered()
        num_waiting = service.entry.places.num_waiting
        status = fleet_status(service.sessions, num_waiting, service.admission.model_name, time.monotonic())
        return json_response(msgspec.json.encode(status))

    async def _windows(self, request: web.Request) -> web.Response:
        decided = WindowList(pair_windows(self._entered().sessions, time.monotonic()))
        return json_response(msgspec.json.encode(decided))

    async def _openapi(self, request: web.Request) -> web.Response:
        return json_response(openapi_document())

    async def _generate(
        self, request: web.Request, kind: type[ChatBody] | type[CompletionBody], dialect: Dialect
    ) -> web.StreamResponse:
        asked_at = time.monotonic()
        service = self._entered()
        check_query(request.query)
        service.entry.check_line()  # a body that could not even wait is not worth its memory and its tokens
        raw = await self._read(request)
        body, prompts = await asyncio.to_thread(_prepare, service.admission, kind, raw)
        self._entered()
        key, deadline = asking_key(), service.entry.deadline(asked_at, body.timeout_s)
        orders = service.admission.orders(body, prompts, key.cache_scope, time.monotonic())
        async with (
            service.entry.admitted(key, len(orders), body.num_choices, deadline) as visit,
            opened(visit, service.sessions, [order.generation for order in orders]) as lives,
        ):
            choices = _choices(service, body, orders, lives, asked_at)
            voice, headers = _voice(lives, dialect, body), _seed_header(lives[0])
            if body.stream:
                return await streamed_response(request, choices, voice, headers, deadline, self._client_timeout_s)
            async with deadline.kept():
                answer = await whole_answer(choices, voice)
        return await whole_response(request, answer, headers, self._client_timeout_s)

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
        except web.RequestPayloadError as error:  # not what its headers say: a broken encoding, say
            raise bad_request(f"The body can't be read: {error}", None, "invalid_body") from error

    def _describe(self, service: Service) -> Model:
        admission = service.admission
        context = admission.placement.fleet.max_context(admission.model_name, time.monotonic())
        return Model(admission.model_name, self._started_at, context)


def make_app(routes: Routes, door: Door, max_body_bytes: int) -> web.Application:
    """The gateway's application; the runtime adds the health endpoints."""
    app = web.Application(client_max_size=max_body_bytes, middlewares=[routes.guard, door.check])
    routes.add_to(app)
    return app


def _prepare(
    admission: Admission, kind: type[ChatBody] | type[CompletionBody], raw: bytes
) -> tuple[AnyBody, list[Prompt]]:
    """Runs in a thread: long bodies take a while to check and to encode."""
    body = parse(kind, raw)
    admission.check_model(body.model)
    return body, admission.encode(body)


def _choices(
    service: Service, body: AnyBody, orders: list[Order], lives: list[LiveSession], asked_at: float
) -> Choices:
    tokenizer, answers = service.admission.tokenizer, []
    for order, live in zip(orders, lives, strict=True):
        text = tokenizer.answer(order.generation, body.stop or ())
        answers.append(Answer(live, text, asked_at, service.metrics, order.prompt.echo))
    prompts = orders[:: body.num_choices]
    return Choices(answers, sum(len(order.prompt.token_ids) for order in prompts))


def _voice(lives: list[LiveSession], dialect: Dialect, body: AnyBody) -> Voice:
    first = lives[0].session
    return Voice(
        dialect=dialect,
        session_id=first.session_id,
        created=int(time.time()),
        model=first.generation.model,
        fingerprint=partial(_fingerprint, lives),
        tells_usage=body.includes_usage,
        tells_fates=body.fates,
    )


def _fingerprint(lives: list[LiveSession]) -> str:
    """Where verifiers of several numerics have worked on the choices, all are named."""
    return ", ".join(dict.fromkeys(name for live in lives for name in live.session.fingerprints))


def _seed_header(live: LiveSession) -> dict[str, str]:
    return {SEED_HEADER: str(live.session.generation.sampling.seed)}


def _told(error: web.HTTPException) -> str:
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return error.text or "The body is too large"
    return {404: "There is no such endpoint", 405: "This endpoint takes another method"}.get(error.status, error.reason)
