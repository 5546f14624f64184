"""The format of gpt-oss, by its own library where that and its vocabulary are installed."""

from __future__ import annotations

import sys

import pytest
from tokenizers import AddedToken

from services.gateway.formats.grammar import CallGrammar
from services.gateway.formats.harmony import MARKERS, FormatUnavailable, harmony_format
from services.gateway.formats.parts import AnswerMessage, CallArguments, Content, Reasoning
from services.gateway.formats.registry import AnswerFormats, ToolUse, choose_formats
from tests.gateway.formats.reading import Read, summary
from tests.gateway.tiny import make_tokenizer

USE = ToolUse(frozenset(["f", "g"]))
TEMPLATE = "{{ '<|start|>' }}{{ '<|channel|>' }}{{ '<|message|>' }}{% for tool in tools %}{% endfor %}"
THOUGHT = "<|channel|>analysis<|message|>Hm 😀.<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": "é"}'


@pytest.fixture(scope="module")
def formats() -> AnswerFormats:
    pytest.importorskip("openai_harmony")
    try:
        return choose_formats("auto", "auto", TEMPLATE)
    except FormatUnavailable as error:
        pytest.skip(str(error))


def read(formats: AnswerFormats, use: ToolUse | None, *pieces: str) -> AnswerMessage:
    parser, message = formats.parser(use, ""), AnswerMessage()
    for piece in pieces:
        message.add(parser.feed(piece))
    message.add(parser.flush())
    return message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (THOUGHT + CALL, Read("", "Hm 😀.", [("f", '{"a": "é"}')])),
        (f"{CALL}<|end|><|start|>assistant{CALL}", Read("", "", [("f", '{"a": "é"}')] * 2)),
        (THOUGHT + "<|channel|>final<|message|>So 日本.\n", Read("So 日本.\n", "Hm 😀.", [])),
        (f"{THOUGHT}<|channel|>commentary<|message|>I look.<|end|><|start|>assistant{CALL}",
         Read("I look.", "Hm 😀.", [("f", '{"a": "é"}')])),
        (THOUGHT + THOUGHT, Read("", "Hm 😀.\nHm 😀.", [])),
        ("<|channel|>commentary to=python code<|message|>1 + 1", Read("1 + 1", "", [])),
        ("Just text <|en", Read("Just text <|en", "", [])),
        (THOUGHT + "<|channel|>fin", Read("", "Hm 😀.", [])),
        (f"{THOUGHT.removesuffix('<|start|>assistant')}well", Read("well", "Hm 😀.", [])),
    ],
)  # fmt: skip
def test_channels_are_told_apart_however_the_text_is_cut(formats: AnswerFormats, text: str, expected: Read) -> None:
    assert summary(read(formats, USE, text)) == expected
    assert summary(read(formats, USE, *text)) == expected


def test_parts_come_as_they_are_written(formats: AnswerFormats) -> None:
    parser = formats.parser(USE, "")
    assert parser.feed("<|channel|>analysis<|message|>One") == [Reasoning("One")]
    assert parser.feed(" two<|e") == [Reasoning(" two")]
    _, arguments = parser.feed(
        'nd|><|start|>assistant<|channel|>commentary to=functions.g <|constrain|>json<|message|>{"'
    )
    assert arguments == CallArguments(0, '{"')
    assert parser.feed('a": 1}') == [CallArguments(0, 'a": 1}')]
    assert parser.has_calls


def test_without_tools_reasoning_is_still_told_apart(formats: AnswerFormats) -> None:
    assert summary(read(formats, None, THOUGHT + "<|channel|>final<|message|>Hi")) == Read("Hi", "Hm 😀.", [])
    assert summary(read(formats, None, CALL)) == Read('{"a": "é"}', "", [])
    assert formats.markers(None) == set(MARKERS)
    assert formats.parser(None, "").feed("<|channel|>final<|message|>Hi") == [Content("Hi")]


def test_a_gateway_without_the_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai_harmony", None)
    with pytest.raises(FormatUnavailable, match=r"dsd-serving\[harmony\].*DSD_TOOL_PARSER=none"):
        harmony_format()
    assert choose_formats("none", "auto", TEMPLATE).tools is None


def test_its_grammar_makes_one_call(formats: AnswerFormats) -> None:
    llguidance = pytest.importorskip("llguidance")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens([AddedToken(marker, special=True) for marker in MARKERS])
    library = llguidance.LLTokenizer(tokenizer.to_str())
    special = {marker: tokenizer.token_to_id(marker) for marker in MARKERS}
    grammar = CallGrammar("harmony", {"f": {"properties": {"a": {"type": "string"}}}, "g": None}, special=special)
    for text, is_accepted in ((CALL, True), (THOUGHT + CALL, True), (THOUGHT, False), (CALL + CALL, False)):
        matcher = llguidance.LLMatcher(library, llguidance.LLMatcher.grammar_from_lark(grammar.text))
        ids = library.tokenize_str(text)
        assert (matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()) == is_accepted, text
