"""Prompts of a distillation: files of text and of traffic, and the target's own user turns."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from model_zoo.distilling.prompts import as_prompt, before_user_turn, file_prompts
from tests.gateway.tiny import SPECIAL
from tests.model_zoo.distilling.tiny import make_target

QUESTION = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(make_target(tmp_path_factory.mktemp("models") / "t", "gpt_neox"))


def written(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_line_of_text_is_a_user_message(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (prompt,) = file_prompts(written(tmp_path / "p.jsonl", '{"question": "hello"}'), tokenizer)
    assert tokenizer.decode(prompt) == QUESTION


def test_traffic_is_asked_again_up_to_its_last_answer(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    one = '{"role": "user", "content": "hello"}'
    two = '{"role": "assistant", "content": "world"}'
    path = written(tmp_path / "t.jsonl", f'{{"messages": [{one}, {two}]}}', f'{{"messages": [{one}, {two}, {one}]}}')
    first, second = file_prompts(path, tokenizer)
    assert tokenizer.decode(first) == QUESTION
    assert tokenizer.decode(second).count("world") == 1
    assert tokenizer.decode(second).endswith(QUESTION)


@pytest.mark.parametrize(
    "line", ['{"messages": 3}', '{"messages": []}', '{"messages": [{"role": "assistant", "content": "x"}]}', "{}"]
)
def test_a_line_that_is_no_conversation_is_named(line: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    good = '{"messages": [{"role": "user", "content": "hello"}]}'
    with pytest.raises(ValueError, match=r"t\.jsonl:2: messages"):
        file_prompts(written(tmp_path / "t.jsonl", good, line), tokenizer)


def test_the_target_is_asked_for_a_user_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.decode(before_user_turn(tokenizer)) == "<|im_start|>user\n"
    turn = tokenizer("hello")["input_ids"]
    assert tokenizer.decode(as_prompt(turn, tokenizer)) == QUESTION
    assert as_prompt(tokenizer(SPECIAL[2])["input_ids"], tokenizer) == []
