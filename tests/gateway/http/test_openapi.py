"""GET /openapi.json describes what the gateway does: requests made from it get no answer but those it names."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from services.gateway.bodies.body import Body
from services.gateway.bodies.chat_body import ChatBody
from services.gateway.bodies.completion_body import CompletionBody
from services.gateway.bodies.responses_body import ResponsesBody
from services.gateway.http.endpoints.tokens import DetokenizeBody, TokenizeBody
from services.gateway.http.openapi import ERRORS, openapi_document
from services.gateway.http.routes import PLAIN_PATHS
from tests.gateway.conftest import World, a_world
from tests.gateway.fakes import MODEL
from tests.gateway.http.test_http import CHAT, COMPLETIONS, chat, events

NUM_EXAMPLES = 80  # for each endpoint and mode
GENERATING = {CHAT, COMPLETIONS, "/v1/responses"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@dataclass(frozen=True)
class Seen:
    """One kind of answer."""

    path: str
    status: int
    is_stream: bool


def explore(schema: BaseSchema, address: str) -> set[Seen]:
    """Sends valid and invalid requests to every endpoint; returns the kinds of answers."""
    seen: set[Seen] = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in GenerationMode if operation.method == "post" else (GenerationMode.POSITIVE,):
            seen |= examine(operation, mode, address)
    return seen


def examine(operation: schemathesis.APIOperation, mode: GenerationMode, address: str) -> set[Seen]:
    seen: set[Seen] = set()
    checks = [*CHECKS, negative_data_rejection] if mode is GenerationMode.NEGATIVE else CHECKS

    @settings(
        max_examples=NUM_EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        response = case.call_and_validate(base_url=address, checks=checks)
        (kind,) = response.headers["content-type"]
        seen.add(Seen(operation.path, response.status_code, kind.startswith("text/event-stream")))

    ask()
    return seen


async def test_no_request_made_from_the_document_gets_an_answer_that_is_not_in_it(folder: Path) -> None:
    async with a_world(folder, drafter_nats_url="nats://127.0.0.1:4222") as world:
        world.answer = "ok"
        await world.verifier(pass_s=0.0)
        document = await (await world.client.get("/openapi.json")).json()
        document["components"]["schemas"]["TokenizeBody"]["properties"]["model"] = {"enum": [MODEL, "another", None]}
        for body in ("ChatBody", "CompletionBody", "ResponsesBody"):  # most name the model, half want streams
            schema = document["components"]["schemas"][body]
            schema["properties"] |= {"model": {"enum": [MODEL, "another"]}, "stream": {"type": "boolean"}}
            schema["required"] += ["stream"]
        schema = schemathesis.openapi.from_dict(
            document
        )  # imports modules, which Python 3.11 may fail to do in two threads
        seen = await asyncio.to_thread(explore, schema, f"http://{world.client.host}:{world.client.port}")
        await world.no_session_is_left()
    paths = set(document["paths"])
    assert {each.path for each in seen if each.status == 200} >= paths - {"/v1/models/{name}", "/v1/dsd/requests/{id}"}
    assert {each.path for each in seen if each.status == 400} >= {*GENERATING, "/tokenize", "/detokenize"}
    assert {each.path for each in seen if each.status == 404} >= {"/v1/models/{name}", COMPLETIONS}
    assert {each.path for each in seen if each.is_stream} == GENERATING


@pytest.mark.parametrize(
    ("path", "asked", "names"),
    [
        (CHAT, chat(logprobs=True, top_logprobs=2, n=2), ("ChatCompletion", "ChatChunk", "ChatLastChunk")),
        (
            COMPLETIONS,
            {"model": MODEL, "prompt": ["a", "b"], "logprobs": 2},
            ("Completion", "CompletionChunk", "CompletionLastChunk"),
        ),
    ],
)
async def test_answers_with_everything_in_them_are_as_described(
    world: World, path: str, asked: dict[str, Any], names: tuple[str, str, str]
) -> None:
    await world.verifier()
    await world.drafter()
    whole, chunk, last = names
    conform(await (await world.client.post(path, json=asked)).json(), whole)
    streamed = {**asked, "stream": True, "stream_options": {"include_usage": True}, "dsd": {"sources": True}}
    *chunks, usage = await events(await world.client.post(path, json=streamed))
    for each in chunks:
        conform(each, last if each["choices"][0]["finish_reason"] else chunk)
    conform(usage, "UsageChunk")


def conform(answer: Any, name: str) -> None:
    """An answer has the described shape, and nothing beyond it."""
    schemas = json.loads(openapi_document())["components"]["schemas"]
    for schema in schemas.values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    root = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
    jsonschema_rs.validate(root, answer)


async def test_the_document_is_told_before_a_verifier_is_there(world: World) -> None:
    response = await world.client.get("/openapi.json")
    assert response.status == 200
    assert (await response.json())["openapi"].startswith("3.1")
    assert (await world.client.post("/openapi.json")).status == 405


async def test_every_endpoint_but_the_runtimes_is_described(world: World) -> None:
    served = {resource.canonical for resource in world.client.app.router.resources()}
    console = {"/console", "/console/", "/console/{file}"}
    assert served - PLAIN_PATHS - {"/openapi.json"} - console == set(json.loads(openapi_document())["paths"])


@pytest.mark.parametrize("body", [ChatBody, CompletionBody, ResponsesBody, TokenizeBody, DetokenizeBody])
def test_every_field_of_a_body_is_described(body: type[Body]) -> None:
    schema = json.loads(openapi_document())["components"]["schemas"][body.__name__]
    assert set(schema["properties"]) == set(body.model_fields)
    assert schema["additionalProperties"] is False


def test_every_reference_leads_to_a_schema_and_every_error_has_its_shape() -> None:
    document = json.loads(openapi_document())
    schemas = document["components"]["schemas"]
    references = set(_references(document))
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= set(schemas)
    answers = document["paths"]["/v1/completions"]["post"]["responses"]
    assert set(answers) == {"200", *ERRORS}
    for status in ERRORS:
        assert answers[status]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorReply")
    assert document["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [found for each in value.values() for found in _references(each)]
    return [found for each in value for found in _references(each)] if isinstance(value, list) else []
