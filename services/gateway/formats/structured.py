"""Formats of answers as grammars in llguidance's syntax.

Invariant: a grammar depends on its format alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import llguidance

from services.gateway.formats.json_schema import as_text
from shared.grammar.grammars import BadGrammar

JSON_OBJECT: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Tag:
    """JSON of a schema between two texts. trigger: the beginning of `begin`, after which the tag must follow."""

    trigger: str
    begin: str
    schema: dict[str, Any] | bool
    end: str


def of_json_schema(schema: dict[str, Any] | bool) -> str:
    return llguidance.grammar_from("json_schema", as_text(schema))


def of_regex(regex: str) -> str:
    """A regular expression of the whole answer."""
    return llguidance.grammar_from("regex", regex)


def of_choice(texts: Sequence[str]) -> str:
    return llguidance.grammar_from("choice", json.dumps(list(texts)))


def of_ebnf(grammar: str) -> str:
    """A grammar in Lark's syntax, or in GBNF. Raises BadGrammar."""
    try:
        return llguidance.grammar_from("grammar", grammar)
    except ValueError as error:
        raise BadGrammar(str(error)) from error


def of_tags(tags: Sequence[Tag]) -> str:
    """Any text; where it has a trigger, one of the trigger's tags follows."""
    parts = [
        llguidance.StructTag(trigger=tag.trigger, begin=tag.begin, grammar=as_text(tag.schema), end=tag.end)
        for tag in tags
    ]
    return llguidance.StructTag.to_grammar(parts, assume_special=False)
