"""Tool calls in each format: what is one, what is not, and the same message however the text is cut."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.formats.parts import CallArguments, CallBegin, Content
from services.gateway.formats.tool_formats import TOOL_FORMATS
from tests.gateway.formats.reading import Read, parts_of, read, summary

CALLED = [
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', [("f", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>{"name": "h", "arguments": {}}',
     [("f", "{}"), ("h", "{}")]),
    ("hermes", '<tool_call>[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]</tool_call>',
     [("f", "{}"), ("g", "{}")]),
    ("hermes", '<tool_call>{"arguments": {"x": "é"}, "name": "f"}</tool_call>', [("f", '{"x": "é"}')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [("f", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"t": "</tool_call> }\\""}}</tool_call>',
     [("f", '{"t": "</tool_call> }\\""}')]),
    ("llama3", '{"name": "f", "parameters": {"a": 1}}', [("f", '{"a": 1}')]),
    ("llama3", ' {"type": "function", "name": "f", "parameters": {"a": [1, {}]}}', [("f", '{"a": [1, {}]}')]),
    ("llama3", '<|python_tag|>{"name": "h", "parameters": {}}; {"name": "g", "parameters": {}}',
     [("h", "{}"), ("g", "{}")]),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "a2345678b"}]', [("f", '{"a": 1}')]),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]',
     [("f", "{}"), ("g", "{}")]),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]a.b-c[CALL_ID]a2345678b[ARGS]{}',
     [("f", '{"a": 1}'), ("a.b-c", "{}")]),
    ("mistral", '[TOOL_CALLS]f{"a": 1}', [("f", '{"a": 1}')]),
]  # fmt: skip
NOT_CALLED = [
    ("hermes", "a < b <tool <tool_call"),
    ("hermes", '\n<tool_call> {"name": 3, "arguments": {}}</tool_call> \n'),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"arguments": {"\\ud800": 1}, "name": "f"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f" oops, "arguments": {}}</tool_call>'),
    ("hermes", "<tool_call><tool_call>"),
    ("hermes", "<tool_call>" + "[" * 3000 + "]" * 3000),
    ("hermes", '{"name": "f", "arguments": {}}'),
    ("llama3", ' {"name": "h", "parameters": {}} is no tool'),
    ("llama3", 'see {"name": "f", "parameters": {}}'),
    ("llama3", '{"a": 1}'),
    ("llama3", '<|python_tag|>f.call(a="b")'),
    ("mistral", "[TOOL_CALLS] of the wild"),
    ("mistral", "[TOOL_CALLS]" + "x" * 400 + "{}"),
    ("mistral", '[TOOL_CALLS] [{"nom": "f"}]'),
]
FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<think>", "</think>"),
    *('{"name": "f", "arguments": {', '{"name": "g", "parameters": {"a": "x', '"}}', "}", "{", "[", "]", ",", ";", '"'),
    *("\\", " ", "\n", "f", "hello", "<", "[TOOL", "é", '"arguments": "{}"', '{"name": "f", '),
]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


@pytest.mark.parametrize(("name", "text", "calls"), CALLED)
def test_calls_are_read_and_their_marks_are_no_content(name: str, text: str, calls: list[tuple[str, str]]) -> None:
    assert summary(read(name, text)) == Read("", "", calls)
    assert summary(read(name, *text)) == Read("", "", calls)


@pytest.mark.parametrize(("name", "text"), NOT_CALLED)
def test_what_is_no_call_stays_content_as_written(name: str, text: str) -> None:
    assert summary(read(name, text)) == Read(text, "", [])
    assert summary(read(name, *text)) == Read(text, "", [])


@settings(max_examples=1500, derandomize=True, deadline=None, database=None)
@given(st.sampled_from([*TOOL_FORMATS, None]), texts, st.sampled_from(["think", None]), st.booleans(), st.randoms())
def test_any_cut_of_a_text_gives_the_same_message(name, text: str, reasoning, is_open: bool, rng) -> None:
    options = {"reasoning": reasoning, "prompt_end": "<think>\n" if is_open else "", "several": rng.random() < 0.8}
    whole = summary(read(name, text, **options))
    assert summary(read(name, *text, **options)) == whole
    places = sorted(rng.randrange(len(text) + 1) for _ in range(3))
    pieces = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    assert summary(read(name, *pieces, **options)) == whole
    if not whole.calls and not whole.reasoning and reasoning is None:
        assert whole.content == text


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_content_comes_at_once_but_for_what_may_begin_a_marker(name: str) -> None:
    marker = TOOL_FORMATS[name].markers[0]
    first, second, third, end = parts_of(name, ["Hello ", "there " + marker[:4], "?"])
    assert [first, second, third] == [[Content("Hello")], [Content(" there")], [Content(f" {marker[:4]}?")]]
    assert end == []


def test_a_call_is_told_at_its_arguments_which_follow_as_they_come() -> None:
    pieces = ["Hm.\n<tool_call>", '{"name": "f", ', '"arguments": {"a"', ": 1}", "}\n</tool", "_call>"]
    first, second, third, fourth, *rest = parts_of("hermes", pieces)
    assert (first, second) == ([Content("Hm.")], [])
    begin, arguments = third
    assert isinstance(begin, CallBegin)
    assert (begin.index, begin.name, arguments) == (0, "f", CallArguments(0, '{"a"'))
    assert fourth == [CallArguments(0, ": 1}")]
    assert rest == [[], [], []]


@pytest.mark.parametrize(
    ("text", "content", "arguments"),
    [
        ('<tool_call>{"name": "f", "arguments": {"a": 1 </tool_call> ok', "ok", '{"a": 1 '),
        ('<tool_call>{"name": "f", "arguments": {"a": "1', "", '{"a": "1'),
        ('<tool_call>{"name": "f", "arguments": {}}\n</tool_', "", "{}"),
        ('Hi <tool_call>{"name": "f", "arguments": {}}\nBye \n', "Hi\nBye \n", "{}"),
        ('<tool_call>{"name": "f", "arguments": {}, "id": [{}]}</tool_call>', "", "{}"),
    ],
)
def test_a_call_that_breaks_off_behind_the_beginning_of_its_arguments_is_one(text, content, arguments) -> None:
    assert summary(read("hermes", text)) == Read(content, "", [("f", arguments)])


def test_without_several_calls_only_the_first_counts() -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>' * 2
    assert summary(read("hermes", text, several=False)).calls == [("f", "{}")]
    assert len(read("hermes", text).calls) == 2


@pytest.mark.parametrize(("name", "pattern"), [("hermes", r"call_[0-9a-f]{24}"), ("mistral", r"[a-zA-Z0-9]{9}")])
def test_every_call_has_an_id_of_its_own(name: str, pattern: str) -> None:
    text = next(text for of, text, calls in CALLED if of == name and len(calls) == 2)
    first, second = read(name, text).calls
    assert re.fullmatch(pattern, first.call_id)
    assert first.call_id != second.call_id


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(values, st.booleans(), st.integers(0, 3))
def test_arguments_arrive_as_they_were_written(value: object, ascii_only: bool, indent: int) -> None:
    arguments = json.dumps({"value": value}, ensure_ascii=ascii_only, indent=indent or None)
    for name, text in (
        ("hermes", f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>'),
        ("llama3", f'{{"name": "f", "parameters": {arguments}}}'),
        ("mistral", f"[TOOL_CALLS]f[ARGS]{arguments}"),
    ):
        assert summary(read(name, *text)) == Read("", "", [("f", arguments)])
