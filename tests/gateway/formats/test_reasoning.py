"""Reasoning before the answer is separated from its content, piece by piece."""

from __future__ import annotations

import pytest

from services.gateway.formats.parts import Content, Reasoning
from tests.gateway.formats.reading import Read, parts_of, read, summary

CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


@pytest.mark.parametrize(
    ("text", "prompt_end", "expected"),
    [
        ("<think>\nWhy?\n</think>\n\nSo.\n", "", Read("So.\n", "Why?", [])),
        ("Why?\n</think>\n\nSo.", "assistant\n<think>\n", Read("So.", "Why?", [])),
        ("<think>Why?</think>So.", "<think>", Read("So.", "Why?", [])),
        ("<think>\n\n</think>\n\nSo.", "", Read("So.", "", [])),
        (" So.", "<think>\n\n</think>\n\n", Read(" So.", "", [])),
        ("<think>Why </thin", "", Read("", "Why </thin", [])),
        ("A <think>b</think>", "", Read("A <think>b</think>", "", [])),
        (f"<think>Should I {CALL}?</think>{CALL}", "", Read("", f"Should I {CALL}?", [("f", "{}")])),
        ("<thing", "", Read("<thing", "", [])),
    ],
)
def test_a_block_at_the_beginning_is_reasoning(text: str, prompt_end: str, expected: Read) -> None:
    for pieces in ([text], text):
        assert summary(read("hermes", *pieces, reasoning="think", prompt_end=prompt_end)) == expected


def test_without_a_format_of_tools_the_rest_is_content() -> None:
    message = read(None, f"<think>a</think>{CALL}", reasoning="think")
    assert summary(message) == Read(CALL, "a", [])


def test_reasoning_comes_as_it_is_written() -> None:
    pieces = ["<thi", "nk>", "\nOne", " two ", "</think>", "\n\n", "three"]
    assert parts_of(None, pieces, reasoning="think") == [
        [], [], [Reasoning("One")], [Reasoning(" two")], [], [], [Content("three")], [],
    ]  # fmt: skip
