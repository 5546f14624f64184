"""The formats of a model: detected from its chat template where that is certain, or set."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.gateway.formats.grammar import CallGrammar
from services.gateway.formats.harmony import FormatUnavailable
from services.gateway.formats.parts import Content
from services.gateway.formats.registry import AnswerFormats, ToolUse, choose_formats

USE = ToolUse(frozenset("f"))
QWEN = '{% if tools %}<tool_call>{"name": <function-name>, "arguments": <args>}</tool_call>{% endif %}'
CODER = "{% if tools %}<tool_call><function=f><parameter=arguments>{% endif %}"
LLAMA = '{% if tools %}Respond in the format {"name": function name, "parameters": dictionary of ...}{% endif %}'
MISTRAL = "{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]"
OTHER = "{% for tool in tools %}{{ tool }}{% endfor %}"
PLAIN = "{{ messages }}"


@pytest.mark.parametrize(
    ("template", "name"),
    [(QWEN, "hermes"), (LLAMA, "llama3"), (MISTRAL, "mistral"), (CODER, None), (OTHER, None), (PLAIN, "hermes"),
     (None, "hermes")],
)  # fmt: skip
def test_the_format_of_calls_is_detected_where_it_is_certain(template: str | None, name: str | None) -> None:
    found = choose_formats("auto", "auto", template).tools
    assert (found.name if found else None) == name
    assert choose_formats("none", "auto", template).tools is None


def test_a_template_without_tools_takes_the_words_of_hermes_and_no_other_format() -> None:
    assert choose_formats("auto", "auto", PLAIN).describes_tools
    assert choose_formats("hermes", "auto", "{{ custom_tools }}").describes_tools
    assert not choose_formats("mistral", "auto", OTHER).describes_tools
    with pytest.raises(FormatUnavailable, match="does not mention tools: tool_parser must be hermes, got mistral"):
        choose_formats("mistral", "auto", PLAIN)


@pytest.mark.parametrize(
    ("template", "opening"),
    [("</think> <think>", "<think>"), ("[THINK][/THINK]", "[THINK]"), ("<think>", None), (PLAIN, None)],
)
def test_reasoning_is_detected_by_both_of_its_markers(template: str, opening: str | None) -> None:
    found = choose_formats("auto", "auto", template).reasoning
    assert (found.opening if found else None) == opening
    assert choose_formats("auto", "none", template).reasoning is None
    assert choose_formats("auto", "think", PLAIN).reasoning is not None


def test_markers_are_shown_only_where_they_are_read() -> None:
    formats = choose_formats("auto", "auto", QWEN + "<think></think>")
    assert formats.markers(None) == {"<think>", "</think>"}
    assert formats.markers(USE) == {"<think>", "</think>", "<tool_call>", "</tool_call>"}
    assert AnswerFormats().markers(USE) == frozenset()


def test_a_grammar_is_of_the_format_with_the_reasoning_that_may_come_before() -> None:
    formats, special = choose_formats("auto", "auto", QWEN + "<think></think>"), {"</think>": 7}
    closed = CallGrammar("hermes", {"f": None}, False, special, formats.reasoning)
    assert formats.grammar({"f": None}, None, False, special, "assistant\n") == closed.text
    assert formats.grammar({"f": None}, None, False, special, "<think>\n") == replace(closed, is_open=True).text


def test_without_tools_and_reasoning_every_text_is_content_at_once() -> None:
    parser = choose_formats("auto", "auto", QWEN).parser(None, "")
    assert parser.feed(" <tool_call") == [Content(" <tool_call")]
    assert parser.flush() == []
