"""GET /openapi.json: the API, described by the types that validate requests and encode answers.

Invariant: the document has every field of a body and of an answer, and every status that an endpoint can return.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, TypeAlias

import msgspec
from pydantic.json_schema import models_json_schema

from services.gateway.bodies.body import Body
from services.gateway.bodies.chat_body import ChatBody
from services.gateway.bodies.completion_body import CompletionBody
from services.gateway.bodies.responses_body import ResponsesBody
from services.gateway.bodies.token_bodies import DetokenizeBody, TokenizeBody
from services.gateway.errors import ErrorReply
from services.gateway.http.endpoints.joining import DrafterJoin
from services.gateway.http.endpoints.requests import RequestList, RequestTimeline
from services.gateway.http.endpoints.tokens import DetokenizeReply, TokenizeReply
from services.gateway.http.fleet_api import FleetStatus, WindowList
from services.gateway.http.response_models import (
    ChatChoice,
    ChatChunkChoice,
    Chunk,
    CompletionChoice,
    CompletionChunkChoice,
    LastChunk,
    Model,
    ModelList,
    UsageChunk,
    Version,
    Whole,
)
from services.gateway.http.responses.models import EVENTS, Response

Json: TypeAlias = dict[str, Any]

REFERENCE = "#/components/schemas/"
BODIES = (ChatBody, CompletionBody, ResponsesBody, TokenizeBody, DetokenizeBody)
REPLIES: dict[str, Any] = {
    "ChatCompletion": Whole[ChatChoice],
    "ChatChunk": Chunk[ChatChunkChoice],
    "ChatLastChunk": LastChunk[ChatChunkChoice],
    "Completion": Whole[CompletionChoice],
    "CompletionChunk": Chunk[CompletionChunkChoice],
    "CompletionLastChunk": LastChunk[CompletionChunkChoice],
    "UsageChunk": UsageChunk,
    "Response": Response,
    **{event.__name__: event for event in EVENTS},
    "Model": Model,
    "ModelList": ModelList,
    "TokenizeReply": TokenizeReply,
    "DetokenizeReply": DetokenizeReply,
    "Version": Version,
    "FleetStatus": FleetStatus,
    "WindowList": WindowList,
    "DrafterJoin": DrafterJoin,
    "RequestList": RequestList,
    "RequestTimeline": RequestTimeline,
    "ErrorReply": ErrorReply,
}
ERRORS = {
    "400": "A field is wrong, unknown, repeated or not supported, or there is a query parameter: `param` names it",
    "401": "The API key is missing or not valid",
    "404": "The model is not served here, the request is not kept, or the key has no drafters",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "417": "The request has an Expect header other than 100-continue",
    "429": "A limit of the API key is reached",
    "500": "The gateway or every verifier failed on this request",
    "503": "No verifier takes the session now, the queue is full, or the gateway is starting or stopping",
    "504": "The answer was not complete in time",
}
OF_ANY = ("401", "417", "500", "503")
OF_A_BODY = tuple(ERRORS)
OF_A_CONVERSION = tuple(status for status in ERRORS if status != "504")  # it waits for nobody
RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait before the next try"}}
HEADERS = {
    "X-DSD-Seed": {"schema": {"type": "integer"}, "description": "Seed of the first choice"},
    "X-DSD-Ignored": {"schema": {"type": "string"}, "description": "Names of fields that had no effect"},
}


@cache
def openapi_document() -> bytes:
    """The document as JSON, the same for every gateway of this version."""
    return json.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "DSD gateway",
                "version": "1",
                "description": "OpenAI's API for one target model, served by distributed speculative decoding.",
            },
            "paths": _paths(),
            "components": {
                "schemas": _schemas(),
                "securitySchemes": {
                    "apiKey": {"type": "http", "scheme": "bearer", "description": "Required where keys are configured"}
                },
            },
            "security": [{}, {"apiKey": []}],
        }
    ).encode()


def _paths() -> Json:
    name, request_id = (
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in ("name", "id")
    )
    return {
        "/v1/chat/completions": {
            "post": _generating("Answers a conversation", ChatBody, "ChatCompletion", ("ChatChunk", "ChatLastChunk"))
        },
        "/v1/completions": {
            "post": _generating(
                "Continues a text", CompletionBody, "Completion", ("CompletionChunk", "CompletionLastChunk")
            )
        },
        "/v1/responses": {"post": _responding()},
        "/v1/models": {"get": _reading("The model served", "ModelList")},
        "/v1/models/{name}": {
            "get": _reading("A model by its name", "Model", "404") | {"parameters": [name]},
        },
        "/tokenize": {"post": _converting("The token ids of a prompt or of messages", TokenizeBody, "TokenizeReply")},
        "/detokenize": {"post": _converting("The text of token ids", DetokenizeBody, "DetokenizeReply")},
        "/version": {"get": _reading("The version of this gateway", "Version")},
        "/dsd/fleet": {"get": _reading("The live instances and their load", "FleetStatus")},
        "/v1/dsd/windows": {"get": _reading("The decided windows and their reasons", "WindowList")},
        "/v1/dsd/drafter": {"get": _reading("What a drafter of the key must know to join", "DrafterJoin", "404")},
        "/v1/dsd/requests": {"get": _reading("What became of the last requests of the key", "RequestList", "404")},
        "/v1/dsd/requests/{id}": {
            "get": _reading("The messages of one request", "RequestTimeline", "404") | {"parameters": [request_id]},
        },
    }


def _generating(summary: str, body: type[ChatBody] | type[CompletionBody], whole: str, chunks: tuple[str, ...]) -> Json:
    chunk = _one_of(*chunks, "UsageChunk", "ErrorReply")
    data = {"description": "`[DONE]` is the last", "anyOf": [{"const": "[DONE]"}, chunk]}
    return _answering(summary, body, whole, {"data": data})


def _responding() -> Json:
    names = [event.__name__ for event in EVENTS]
    event = {"event": {"description": "The event's type", "type": "string"}, "data": _one_of(*names)}
    return _answering("Answers a conversation, statelessly", ResponsesBody, "Response", event)


def _answering(summary: str, body: type[Body], whole: str, event: Json) -> Json:
    """event: the fields of one. Before OpenAPI 3.2 the schema of a stream is the schema of each of its events."""
    answer = {
        "description": "The answer, as an event stream where `stream` is true",
        "headers": HEADERS,
        "content": {
            "application/json": {"schema": _ref(whole)},
            "text/event-stream": {"schema": {"type": "object", "required": sorted(event), "properties": event}},
        },
    }
    return {"summary": summary, "requestBody": _json(body), "responses": {"200": answer} | _errors(OF_A_BODY)}


def _converting(summary: str, body: type[TokenizeBody] | type[DetokenizeBody], reply: str) -> Json:
    headers = {"X-DSD-Ignored": HEADERS["X-DSD-Ignored"]}
    answer = {"description": summary, "headers": headers, "content": {"application/json": {"schema": _ref(reply)}}}
    return {"summary": summary, "requestBody": _json(body), "responses": {"200": answer} | _errors(OF_A_CONVERSION)}


def _json(body: type[Body]) -> Json:
    return {"required": True, "content": {"application/json": {"schema": _ref(body.__name__)}}}


def _one_of(*names: str) -> Json:
    """JSON of one of the schemas, as text."""
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": [*map(_ref, names)]}}


def _reading(summary: str, reply: str, *more_errors: str) -> Json:
    answer = {"description": summary, "content": {"application/json": {"schema": _ref(reply)}}}
    return {"summary": summary, "responses": {"200": answer} | _errors((*OF_ANY, *more_errors))}


def _errors(statuses: tuple[str, ...]) -> Json:
    content = {"application/json": {"schema": _ref("ErrorReply")}}
    return {
        status: {"description": ERRORS[status], "content": content}
        | ({"headers": RETRY_AFTER} if status in ("429", "503") else {})
        for status in sorted(statuses)
    }


def _ref(name: str) -> Json:
    return {"$ref": REFERENCE + name}


def _schemas() -> Json:
    """Schemas of bodies (pydantic) and of replies (msgspec, with generic types renamed as in REPLIES)."""
    _, bodies = models_json_schema([(body, "validation") for body in BODIES], ref_template=REFERENCE + "{model}")
    refs, replies = msgspec.json.schema_components(REPLIES.values(), ref_template=REFERENCE + "{name}")
    for name, ref in zip(REPLIES, refs, strict=True):
        replies[name] = replies.pop(ref["$ref"].removeprefix(REFERENCE)) | {"title": name}
    schemas: Json = {**bodies["$defs"], **replies}
    if len(schemas) != len(bodies["$defs"]) + len(replies):
        raise TypeError("a body and a reply have the same name")
    return schemas
