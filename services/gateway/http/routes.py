"""Handlers of all endpoints of the API (docs/api.md).

Invariant: a client gets one answer in OpenAI's shape, or none if it leaves; its sessions are closed in either case. A
handler is cancelled when its client leaves (the runner's handler_cancellation).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TypeAlias
from urllib.parse import quote

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from services.gateway.admission.gate import AdmissionGate
from services.gateway.bodies.chat_body import ChatBody
from services.gateway.bodies.completion_body import CompletionBody
from services.gateway.bodies.responses_body import ResponsesBody
from services.gateway.errors import ApiError, SessionFailed, answer_to, bad_request
from services.gateway.http.answer import ChoiceAnswer
from services.gateway.http.auth import Authenticator, current_key
from services.gateway.http.choices import Choices, opened
from services.gateway.http.endpoints.console import ConsolePage
from services.gateway.http.endpoints.joining import Joining
from services.gateway.http.endpoints.requests import request_list, request_timeline
from services.gateway.http.endpoints.tokens import DetokenizeReply, TokenizeReply, detokenized, tokenized
from services.gateway.http.endpoints.unsupported import unknown_path
from services.gateway.http.fleet_api import WindowList, fleet_status, pair_windows
from services.gateway.http.openapi import openapi_document
from services.gateway.http.parsing import AnyBody, check_query, parse
from services.gateway.http.request_builder import ChoiceRequest, EncodedPrompt, RequestBuilder
from services.gateway.http.response_models import Model, ModelList, Version
from services.gateway.http.response_writer import AnswerWriter, ChatWriter, CompletionWriter, ResponseWriter
from services.gateway.http.responses.writer import ResponsesWriter
from services.gateway.http.streaming import (
    error_response,
    json_response,
    streamed_response,
    whole_answer,
    whole_response,
)
from services.gateway.metrics import GatewayMetrics
from services.gateway.session.manager import LiveSession, Sessions
from services.gateway.traces import RequestTrace, traced
from shared.runtime.tracing import NO_TRACING, Tracing

log = structlog.get_logger(__name__)

SEED_HEADER, IGNORED_HEADER = "X-DSD-Seed", "X-DSD-Ignored"
MAX_IGNORED_CHARACTERS = 1024  # of the header
SETTLE_S = 0.5  # for requests that clients send before they hear of the end
Convert: TypeAlias = Callable[
    [RequestBuilder, bytes, list[str] | None, int], tuple[TokenizeReply | DetokenizeReply, list[str]]
]
AskedBody: TypeAlias = AnyBody | ResponsesBody
PLAIN_PATHS = frozenset({"/healthz", "/readyz", "/health", "/metrics"})  # the runtime has their handlers


@dataclass(frozen=True, slots=True)
class Backend:
    """The parts of a started gateway that handlers use."""

    sessions: Sessions
    builder: RequestBuilder
    gate: AdmissionGate
    metrics: GatewayMetrics
    tracing: Tracing


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is read. asked: its body as sent; body: what to generate for it; ignored: the header of fields
    without effect."""

    asked: AskedBody
    body: AnyBody
    prompts: list[EncodedPrompt]
    ignored: dict[str, str]


class Routes:
    """All handlers. They answer 503 before `open` and after `close`."""

    def __init__(
        self,
        client_timeout_s: float,
        joining: Joining,
        console: ConsolePage | None = None,
        *,
        ignores_unknown: bool = False,
    ) -> None:
        self._client_timeout_s = client_timeout_s
        self._joining = joining
        self._console = console
        self._ignores_unknown = ignores_unknown
        self._backend: Backend | None = None
        self._closed = "the gateway is starting"
        self._started_at = int(time.time())

    def open(
        self,
        sessions: Sessions,
        builder: RequestBuilder,
        gate: AdmissionGate,
        metrics: GatewayMetrics,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        """Starts to accept requests."""
        self._backend = Backend(sessions, builder, gate, metrics, tracing)
        self._closed = ""

    def close(self, reason: str) -> None:
        """Refuses new requests with this reason; requests under way continue."""
        self._closed = reason

    async def settled(self) -> None:
        """Returns when clients that had not heard of `close` have had time to be refused. Else the end of the process
        would reset their connections."""
        await asyncio.sleep(SETTLE_S)

    def add_to(self, app: web.Application) -> None:
        add_get, add_post = (partial(add, expect_handler=_expect) for add in (app.router.add_get, app.router.add_post))
        add_post("/v1/chat/completions", self._chat)
        add_post("/v1/completions", self._complete)
        add_post("/v1/responses", self._respond)
        add_get("/v1/models", self._models)
        add_get("/v1/models/{name:.+}", self._model)
        add_post("/tokenize", self._tokenize)
        add_post("/detokenize", self._detokenize)
        add_get("/version", self._version)
        add_get("/dsd/fleet", self._fleet)
        add_get("/v1/dsd/windows", self._windows)
        add_get("/v1/dsd/drafter", self._drafter)
        add_get("/v1/dsd/requests", self._requests)
        add_get("/v1/dsd/requests/{id}", self._timeline)
        add_get("/openapi.json", self._openapi)
        if self._console is not None:
            self._console.add_to(app)

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Middleware: turns every error into OpenAI's shape and counts the answers."""
        if request.path in PLAIN_PATHS:
            return await handler(request)
        try:
            response = await handler(request)
        except (ApiError, SessionFailed) as error:
            response = error_response(answer_to(error))
        except web.HTTPException as error:
            response = error_response(_http_error(error, request.path))
            if "Allow" in error.headers:  # of a 405: the allowed methods
                response.headers["Allow"] = error.headers["Allow"]
        except Exception:
            log.exception("request failed", path=request.path)
            response = error_response(ApiError(500, "The gateway failed on this request", code="internal"))
        if self._backend is not None:
            resource = request.match_info.route.resource
            endpoint = resource.canonical if resource else "none"
            self._backend.metrics.requests.labels(endpoint, str(response.status)).inc()
        return response

    # --- handlers --------------------------------------------------------------------------------------------------

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, ChatBody)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, CompletionBody)

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, ResponsesBody)

    async def _models(self, request: web.Request) -> web.Response:
        return json_response(ModelList([self._describe(self._open_backend())]))

    async def _model(self, request: web.Request) -> web.Response:
        backend = self._open_backend()
        backend.builder.check_model(request.match_info["name"])
        return json_response(self._describe(backend))

    async def _tokenize(self, request: web.Request) -> web.Response:
        return await self._convert(request, tokenized)

    async def _detokenize(self, request: web.Request) -> web.Response:
        return await self._convert(request, detokenized)

    async def _version(self, request: web.Request) -> web.Response:
        return json_response(Version(version("dsd-serving")))

    async def _fleet(self, request: web.Request) -> web.Response:
        backend = self._open_backend()
        num_waiting = backend.gate.slots.num_waiting
        return json_response(fleet_status(backend.sessions, num_waiting, backend.builder.model_name, time.monotonic()))

    async def _windows(self, request: web.Request) -> web.Response:
        return json_response(WindowList(pair_windows(self._open_backend().sessions, time.monotonic())))

    async def _drafter(self, request: web.Request) -> web.Response:
        self._open_backend()
        return json_response(await self._joining.answer(current_key()))

    async def _requests(self, request: web.Request) -> web.Response:
        return json_response(request_list(self._open_backend().sessions.recent, current_key()))

    async def _timeline(self, request: web.Request) -> web.Response:
        recent = self._open_backend().sessions.recent
        return json_response(request_timeline(recent, current_key(), request.match_info["id"]))

    async def _openapi(self, request: web.Request) -> web.Response:
        return web.Response(body=openapi_document(), content_type="application/json")

    async def _generate(self, request: web.Request, kind: type[AskedBody]) -> web.StreamResponse:
        backend = self._open_backend()
        with traced(backend.tracing, request, backend.builder.model_name) as trace:
            response = await self._answer(request, kind, backend, trace)
            trace.answered(response.status)
        return response

    async def _answer(
        self, request: web.Request, kind: type[AskedBody], backend: Backend, trace: RequestTrace
    ) -> web.StreamResponse:
        asked_at = time.monotonic()
        check_query(request.query)
        backend.gate.check_queue()  # before reading the body: a full queue costs no memory
        raw = await self._read(request)
        trace.read()
        prepared = await asyncio.to_thread(_prepare, backend.builder, kind, raw, self._ignores_unknown)
        self._open_backend()
        body = prepared.body
        trace.tokenised(body, sum(len(prompt.token_ids) for prompt in prepared.prompts))
        key, deadline = current_key(), backend.gate.deadline(asked_at, body.timeout_s)
        async with deadline.kept():
            await backend.sessions.wait_for_verifier(backend.builder.model_name)
        requests = backend.builder.choice_requests(body, prepared.prompts, key, time.monotonic())
        generations = [each.generation for each in requests]
        async with (
            backend.gate.admitted(key, len(requests), body.num_choices, deadline) as ticket,
            opened(ticket, backend.sessions, trace.admitted(ticket, generations)) as lives,
        ):
            choices = _choices(backend, body, requests, lives, asked_at)
            writer = _writer(lives, prepared)
            headers = {SEED_HEADER: str(requests[0].generation.sampling.seed), **prepared.ignored}
            if body.stream:
                return await streamed_response(request, choices, writer, headers, deadline, self._client_timeout_s)
            async with deadline.kept():
                answer = await whole_answer(choices, writer)
            return await whole_response(request, answer, headers, deadline, self._client_timeout_s)

    async def _convert(self, request: web.Request, convert: Convert) -> web.Response:
        backend = self._open_backend()
        check_query(request.query)
        raw = await self._read(request)
        backend.gate.charge(current_key())
        unknown: list[str] | None = [] if self._ignores_unknown else None
        max_model_len = self._describe(backend).max_model_len
        reply, ignored = await asyncio.to_thread(convert, backend.builder, raw, unknown, max_model_len)
        return json_response(reply, _ignored(ignored))

    # --- helpers ---------------------------------------------------------------------------------------------------

    def _open_backend(self) -> Backend:
        if self._backend is None or self._closed:
            raise ApiError(503, f"Not available: {self._closed}", code="draining")
        return self._backend

    async def _read(self, request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(self._client_timeout_s):
                return await request.read()
        except TimeoutError as error:
            raise ApiError(408, f"The body did not arrive within {self._client_timeout_s:g} s") from error
        except web.RequestPayloadError as error:  # for example a broken content encoding
            raise bad_request(f"The body can't be read: {error}", None, "invalid_body") from error

    def _describe(self, backend: Backend) -> Model:
        builder = backend.builder
        context = builder.placement.fleet.max_context(builder.model_name, time.monotonic())
        name = builder.model_name
        return Model(id=name, root=name, created=self._started_at, max_model_len=context)


def make_app(routes: Routes, authenticator: Authenticator, max_body_bytes: int) -> web.Application:
    """The gateway's application; the runtime adds the health endpoints."""
    app = web.Application(client_max_size=max_body_bytes, middlewares=[routes.guard, authenticator.check])
    routes.add_to(app)
    return app


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """Tells a client that waits for it to send its body; refuses any other expectation. Runs before the middlewares."""
    if request.headers["Expect"].lower() != "100-continue":
        return error_response(ApiError(417, "The header Expect may be 100-continue only"))
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer has not begun
    return None


def _ignored(names: list[str]) -> dict[str, str]:
    """The header that names fields without effect. A name may hold anything: it is encoded as in a URL."""
    shown = ", ".join(dict.fromkeys(quote(name[:MAX_IGNORED_CHARACTERS], safe="._-") for name in names))
    return {IGNORED_HEADER: shown[:MAX_IGNORED_CHARACTERS].rstrip(", ")} if names else {}


def _prepare(builder: RequestBuilder, kind: type[AskedBody], raw: bytes, ignores_unknown: bool) -> Prepared:
    """Runs in a thread, since long bodies are slow."""
    unknown: list[str] | None = [] if ignores_unknown else None
    asked = parse(kind, raw, unknown)
    builder.check_model(asked.model)
    body = asked.chat if isinstance(asked, ResponsesBody) else asked
    prompts, ignored = builder.encode(body), builder.ignored(body)
    if isinstance(asked, ResponsesBody):
        ignored = asked.ignored(ignored)
    return Prepared(asked, body, prompts, _ignored([*ignored, *(unknown or [])]))


def _choices(
    backend: Backend, body: AnyBody, requests: list[ChoiceRequest], lives: list[LiveSession], asked_at: float
) -> Choices:
    answers = []
    for request, live in zip(requests, lives, strict=True):
        prompt, generation = request.prompt, request.generation
        text = backend.builder.reader(body, generation, len(prompt.echo or ""))
        echo = None if prompt.echo is None else backend.builder.tokenizer.echo(generation, prompt.echo)
        is_silent = body.max_tokens == 0
        answers.append(ChoiceAnswer(live, text, asked_at, backend.metrics, echo, is_silent=is_silent))
    prompts = [request.prompt for request in requests[:: body.num_choices]]
    return Choices(answers, sum(len(prompt.token_ids) for prompt in prompts))


def _writer(lives: list[LiveSession], prepared: Prepared) -> AnswerWriter:
    first, created, fingerprint = lives[0].session, int(time.time()), partial(_fingerprint, lives)
    asked, body = prepared.asked, prepared.body
    if isinstance(asked, ResponsesBody):
        return ResponsesWriter(asked, first.session_id, created, fingerprint)
    shape: type[ResponseWriter] = ChatWriter if isinstance(body, ChatBody) else CompletionWriter
    return shape(
        session_id=first.session_id,
        created=created,
        model=first.generation.model,
        fingerprint=fingerprint,
        tells_usage=body.includes_usage,
        tells_usage_so_far=body.continuous_usage,
        tells_sources=body.sources,
    )


def _fingerprint(lives: list[LiveSession]) -> str:
    """Names the numerics of all verifiers whose tokens the choices have."""
    return ", ".join(dict.fromkeys(name for live in lives for name in live.session.fingerprints))


def _http_error(error: web.HTTPException, path: str) -> ApiError:
    if error.status == 404:
        return unknown_path(path)
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return ApiError(error.status, error.text or "The body is too large")
    return ApiError(error.status, "This endpoint takes another method" if error.status == 405 else error.reason)
