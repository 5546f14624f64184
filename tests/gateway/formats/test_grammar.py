"""Grammars of calls: what they accept is read as calls of the tools, with arguments as the schemas say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import AddedToken

from services.gateway.formats.grammar import GRAMMARS, CallGrammar
from services.gateway.formats.reasoning import REASONING_FORMATS
from services.gateway.formats.tool_formats import TOOL_FORMATS
from tests.gateway.formats.reading import read
from tests.gateway.tiny import make_tokenizer

WEATHER = {
    "properties": {"city": {"$ref": "#/$defs/city"}},
    "required": ["city"],
    "$defs": {"city": {"type": "string"}},
}
TOOLS: dict[str, dict[str, Any] | None] = {"weather": WEATHER, "now": None}
MARKERS = [marker for each in TOOL_FORMATS.values() for marker in each.markers] + ["<think>", "</think>"]
CALLS = {  # (format, whether its markers are special tokens) -> one call, and two
    ("hermes", False): [
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    ],
    ("llama3", False): [
        '{"name": "now", "parameters": {}}',
        '{"name": "weather", "parameters": {"city": "Oslo"}}; {"name": "now", "parameters": {}}',
    ],
    ("mistral", False): [
        '[TOOL_CALLS] [{"name": "now", "arguments": {}}]',
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}}, {"name": "now", "arguments": {}}]',
    ],
    ("mistral", True): [
        "[TOOL_CALLS]now[ARGS]{}",
        '[TOOL_CALLS]weather[ARGS]{"city": "Oslo"}[TOOL_CALLS]now[ARGS]{}',
    ],
}
CALLS["hermes", True] = CALLS["hermes", False]
WRONG = ["", "hello", "{}", '{"name": "other", "parameters": {}}']
every_form = pytest.mark.parametrize("form", CALLS, ids=lambda form: f"{form[0]}-{'tokens' if form[1] else 'text'}")


def tokenizer_with_markers():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens([AddedToken(marker, special=True) for marker in MARKERS])
    return tokenizer


def special_ids(*, are_special: bool) -> dict[str, int]:
    tokenizer = tokenizer_with_markers()
    return {marker: tokenizer.token_to_id(marker) for marker in MARKERS} if are_special else {}


def test_every_format_has_a_grammar() -> None:
    assert set(GRAMMARS) == {*TOOL_FORMATS, "harmony"}


@every_form
def test_what_a_grammar_is_meant_to_accept_is_read_as_calls_alone(form: tuple[str, bool]) -> None:
    for text, names in zip(CALLS[form], [["now"], ["weather", "now"]], strict=True):
        message = read(form[0], text, names=frozenset(TOOLS))
        assert ([call.name for call in message.calls], message.content) == (names, "")


@every_form
def test_a_grammar_names_each_tool_once_and_has_its_schema(form: tuple[str, bool]) -> None:
    text = CallGrammar(form[0], TOOLS, special=special_ids(are_special=form[1])).text
    schemas = [json.loads(schema) for schema in re.findall(r"%json (.*)", text)]
    assert [schema["type"] for schema in schemas] == ["object", "object"]
    assert schemas[0]["$defs"] == WEATHER["$defs"]
    assert schemas[1]["additionalProperties"] is False
    assert all(len(re.findall(rf"\b{name}\b", text)) == 1 for name in TOOLS)
    assert ("<[" in text) == form[1]


@pytest.mark.parametrize("thinks", [False, True], ids=["", "thinks"])
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@every_form
def test_the_library_accepts_calls_and_nothing_else(form: tuple[str, bool], several: bool, thinks: bool) -> None:
    llguidance = pytest.importorskip("llguidance")
    library = llguidance.LLTokenizer((tokenizer_with_markers() if form[1] else make_tokenizer()).to_str())
    reasoning = REASONING_FORMATS["think"] if thinks else None
    special = special_ids(are_special=form[1])
    grammar = CallGrammar(form[0], TOOLS, several, special, reasoning)

    def accepts(text: str, grammar: CallGrammar = grammar) -> bool:
        matcher = llguidance.LLMatcher(library, llguidance.LLMatcher.grammar_from_lark(grammar.text))
        assert not matcher.is_error(), matcher.get_error()
        ids = library.tokenize_str(text)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    one, two = CALLS[form]
    assert accepts(one)
    assert accepts(two) == several
    assert accepts(f"<think>Hm <b>\n</think>\n\n{one}") == thinks
    assert not any(accepts(text) for text in WRONG)
    either = replace(grammar, answer={"properties": {"a": {"type": "integer"}}, "required": ["a"]})
    if form[0] != "llama3":
        assert accepts('{"a": 1}', either)
        assert accepts(one, either)
        assert not accepts('{"b": 1}', either)
    answer_alone = replace(either, tools={})
    assert accepts('{"a": 1}', answer_alone)
    assert not accepts(one, answer_alone)
    assert not accepts(one.replace("{}", '{"x": 1}'))
    assert not accepts(two.replace('"city"', '"town"', 1))
    if thinks:
        opened = CallGrammar(form[0], TOOLS, several, special, reasoning, is_open=True)
        assert accepts(f"Hm\n</think>\n\n{one}", opened)
        assert not accepts(one, opened)
