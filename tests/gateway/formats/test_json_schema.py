"""Schemas as the grammars get them: objects that list their properties get no others, and nothing new is allowed."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import jsonschema_rs
import pytest

from services.gateway.formats.json_schema import LAYOUT, as_text
from shared.grammar.grammars import BadGrammar

NAMED: dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}}}
CLOSED: dict[str, Any] = NAMED | {"additionalProperties": False}
OTHER: dict[str, Any] = {"type": "object", "properties": {"other": {"type": "integer"}}, "required": ["other"]}
REFERENCE = {"$ref": "#/$defs/named"}


def taken(schema: dict[str, Any] | bool) -> dict[str, Any]:
    told = json.loads(as_text(schema))
    assert told.pop("x-guidance") == LAYOUT
    return told


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (NAMED, CLOSED),
        (NAMED | {"required": ["name"]}, CLOSED | {"required": ["name"]}),
        ({"type": "array", "items": NAMED}, {"type": "array", "items": CLOSED}),
        ({"anyOf": [NAMED, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        ({"allOf": [REFERENCE], "$defs": {"named": NAMED}}, {"allOf": [REFERENCE], "$defs": {"named": CLOSED}}),
    ],
)
def test_an_object_that_lists_its_properties_gets_no_others(schema: dict[str, Any], closed: dict[str, Any]) -> None:
    assert taken(schema) == closed
    assert not jsonschema_rs.is_valid(closed, _with_another(closed))


def _with_another(schema: dict[str, Any]) -> Any:
    other = {"name": "a", "other": 1}
    return [other] if schema.get("type") == "array" else other


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        NAMED | {"additionalProperties": True},
        NAMED | {"additionalProperties": {"type": "integer"}},
        NAMED | {"patternProperties": {"^x": {"type": "integer"}}},
        NAMED | {"minProperties": 2},
        NAMED | {"required": ["other"]},
        NAMED | {"allOf": [{"properties": {"other": {"type": "integer"}}}]},
        NAMED | REFERENCE | {"$defs": {"named": {"type": "object"}}},
        NAMED | {"anyOf": [{"required": ["name"]}, {"required": ["other"]}]},
        NAMED | {"not": {"properties": {"name": {"const": "a"}}}},
        {"oneOf": [NAMED, {"type": "object", "properties": {"other": {}}, "required": ["other"]}]},
        {"allOf": [NAMED, {"properties": {"other": {"type": "integer"}}}]},
        {"if": NAMED, "then": NAMED},
        {"enum": [{"properties": {"name": 1}}]},
        REFERENCE | {"anyOf": [OTHER], "$defs": {"named": NAMED}},
        {"allOf": [NAMED], "anyOf": [OTHER]},
        {"allOf": [NAMED], "required": ["other"]},
        REFERENCE | {"minProperties": 2, "$defs": {"named": NAMED}},
        {"properties": {"ab": NAMED}, "patternProperties": {"^a": OTHER}},
        {"$ref": "#/$defs/default", "$defs": {"default": {"allOf": [NAMED, OTHER]}}},
    ],
)
def test_a_schema_whose_parts_may_speak_of_one_object_stays_as_it_is(schema: dict[str, Any]) -> None:
    assert taken(schema) == schema


def test_a_format_that_is_not_known_says_nothing_and_a_property_of_that_name_stays() -> None:
    schema = {"properties": {"format": {"type": "string", "format": "password"}}, "additionalProperties": False}
    assert taken(schema) == schema | {"properties": {"format": {"type": "string"}}}
    known = {"type": "string", "format": "date"}
    assert taken(known) == known


def test_a_schema_is_true_or_false_or_has_a_property_of_any_name() -> None:
    assert taken(True) == {}
    assert taken(False) == {"not": {}}
    odd = {"type": "object", "properties": dict.fromkeys(("properties", "const", "if", "not"), NAMED)}
    assert taken(odd)["properties"] == dict.fromkeys(odd["properties"], CLOSED)


@pytest.mark.parametrize(
    ("multiples", "is_taken"),
    [
        ([50_000], True),
        ([0.01, 0.25, 1e-7], True),
        ([50_001], False),
        ([999_983], False),
        ([9.99983], False),
        ([9973] * 6, False),
    ],
)
def test_remainders_that_take_seconds_to_compile_are_refused(multiples: list[float], is_taken: bool) -> None:
    schema = {"properties": {f"p{n}": {"type": "number", "multipleOf": each} for n, each in enumerate(multiples)}}
    with nullcontext() if is_taken else pytest.raises(BadGrammar, match="multipleOf"):
        as_text(schema)


def test_a_deeply_nested_schema_needs_no_deep_stack() -> None:
    schema: dict[str, Any] = NAMED
    for _ in range(900):
        schema = {"items": schema}
    assert as_text(schema).count('"additionalProperties": false') == 1
