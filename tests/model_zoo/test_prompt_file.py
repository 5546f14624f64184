"""Prompts are read from JSONL files, or the bad line is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_zoo.prompt_file import read_prompts

DEFAULT_PROMPTS = Path(__file__).parents[1] / "data" / "prompts.jsonl"


def test_the_default_prompts_are_read() -> None:
    assert len(read_prompts(DEFAULT_PROMPTS)) == len(DEFAULT_PROMPTS.read_text().splitlines())
    assert read_prompts(DEFAULT_PROMPTS, "prompt") == read_prompts(DEFAULT_PROMPTS)


def test_the_field_of_a_prompt_is_found_or_named(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text('{"id": 1, "question": "why?", "answer": "so"}\n{"question": "how?", "answer": "thus"}\n')
    assert read_prompts(path) == ["why?", "how?"]
    assert read_prompts(path, "answer") == ["so", "thus"]


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "empty"), ("{}", ":1"), ('{"prompt": "a"}\n{"prompt": ""}', ":2"), ("[1]", ":1"), ("{", ":1")],
)
def test_a_file_without_prompts_is_refused_with_the_line(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        read_prompts(path)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_a_line_of_a_file_ends_at_a_newline_and_nowhere_else(separator: str, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(f'{{"prompt": "a{separator}b"}}\r\n{{"prompt": "c"}}\n'.encode())
    assert read_prompts(path) == [f"a{separator}b", "c"]


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text('{"prompt": "\ufeffa"}\n', encoding="utf-8-sig")
    assert read_prompts(path) == ["\ufeffa"]


def test_a_file_that_is_not_utf_8_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes('{"prompt": "a"}\n{"prompt": "\u00e9"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"file\.jsonl:2: "):
        read_prompts(path)
