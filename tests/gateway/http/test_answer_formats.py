"""Formats of answers: verifier and drafter get the grammar, and a bad one is refused with the library's reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.gateway.formats import structured
from services.gateway.formats.json_schema import LAYOUT
from shared.protocol.messages import Open, Speculate
from tests.gateway.conftest import World
from tests.gateway.fakes import MODEL
from tests.gateway.http.test_http import CHAT, COMPLETIONS, chat

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
TAG = {"begin": "<f>", "schema": SCHEMA, "end": "</f>"}
TAGS = {"type": "structural_tag", "structures": [TAG], "triggers": ["<f"]}
OF_TAGS = structured.of_tags([structured.Tag("<f", "<f>", SCHEMA, "</f>")])


def completion(**options: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "hi", **options}


@pytest.mark.parametrize(
    ("options", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, structured.of_json_schema({"type": "object"})),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
                }
            },
            structured.of_json_schema(SCHEMA),
        ),
        ({"response_format": TAGS}, OF_TAGS),
        ({"structured_outputs": {"json": SCHEMA}}, structured.of_json_schema(SCHEMA)),
        ({"structured_outputs": {"json_object": True, "regex": None}}, structured.of_json_schema({"type": "object"})),
        ({"structured_outputs": {"regex": "[0-9]+/x"}}, structured.of_regex("[0-9]+/x")),
        ({"structured_outputs": {"choice": ["yes", "no\n"]}}, structured.of_choice(["yes", "no\n"])),
        ({"structured_outputs": {"grammar": 'root ::= "a" | "b"'}}, structured.of_ebnf('root ::= "a" | "b"')),
        ({"structured_outputs": {"structural_tag": TAGS}}, OF_TAGS),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_verifier_and_drafter_get_the_grammar_of_the_format(
    world: World, path: str, options: dict[str, Any], grammar: str | None
) -> None:
    verifier, drafter = await world.verifier(), await world.drafter()
    body = chat(**options) if path == CHAT else completion(**options)
    response = await world.client.post(path, json=body)
    assert response.status == 200, await response.text()
    assert [each.grammar for each in verifier.of(Open)] == [grammar]
    assert [each.grammar for each in drafter.of(Speculate)] == [grammar]


@pytest.mark.parametrize(
    ("options", "param", "reason"),
    [
        ({"response_format": {"type": "xml"}}, "response_format", "xml"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "foo"}}}},
            "response_format",
            "Invalid type: foo",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": "{}"}}},
            "response_format.json_schema.schema",
            "JSON Schema",
        ),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"json": {str(n): 1 for n in range(1025)}}}, "structured_outputs.json", "1024 keys"),
        ({"response_format": {**TAGS, "triggers": ["<", "<f"]}}, "response_format.triggers", "beginning of another"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"regex": "["}}, "structured_outputs", "invalid regex"),
        ({"structured_outputs": {"grammar": "nonsense"}}, "structured_outputs", "Expected"),
        (
            {"structured_outputs": {"json": {"type": "array", "uniqueItems": True, "contains": {}}}},
            "structured_outputs",
            "contains",
        ),
        ({"structured_outputs": {"regex": "a"}, "response_format": TAGS}, "structured_outputs", "exclude"),
        ({"structured_outputs": {"regex": "a"}, "min_tokens": 3}, "min_tokens", "not allowed with a format"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos", "not allowed with a format"),
        ({"response_format": {**TAGS, "triggers": ["<g"]}}, "response_format.structures", "triggers"),
    ],
)
async def test_a_bad_format_is_refused_with_its_field_and_the_reason(
    world: World, options: dict[str, Any], param: str, reason: str
) -> None:
    await world.verifier()
    response = await world.client.post(CHAT, json=chat(**options))
    error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, param), error
    assert reason in error["message"], error


def test_a_schema_keeps_its_own_keys_and_gets_one_layout() -> None:
    grammar = json.loads(structured.of_json_schema({"x-guidance": {"whitespace_flexible": True}, **SCHEMA}))
    schema = grammar["grammars"][0]["json_schema"]
    assert schema == {**SCHEMA, "x-guidance": LAYOUT}
