"""Answers of a target: the texts, its distributions at their tokens, and the files that hold both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from model_zoo.distilling.answers import (
    NUM_LIKELIEST,
    Answer,
    answer,
    continue_texts,
    count_answers,
    read_answers,
    write_answers,
)
from tests.model_zoo.distilling.tiny import load, make_target

STOPS = [2]
PROMPTS = [[5, 6, 7], [9], [10, 11, 12, 13, 14], [20, 21]]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return load(make_target(tmp_path_factory.mktemp("models") / "gpt_neox", "gpt_neox"))


@pytest.fixture(scope="module")
def answers(target: PreTrainedModel) -> list[Answer]:
    return answer(target, PROMPTS, STOPS, 24, seed=3)


def test_an_answer_has_the_distribution_that_each_of_its_tokens_was_drawn_from(
    target: PreTrainedModel, answers: list[Answer]
) -> None:
    for each in answers:
        with torch.no_grad():
            logits = target(input_ids=torch.tensor([each.prompt + each.token_ids])).logits[0, len(each.prompt) - 1 : -1]
        expected = logits.log_softmax(-1).topk(NUM_LIKELIEST)
        torch.testing.assert_close(each.logprobs.float(), expected.values, atol=0.02, rtol=0)
        assert (each.likeliest[:, 0] == expected.indices[:, 0]).float().mean() > 0.9


def test_every_other_answer_is_greedy(answers: list[Answer]) -> None:
    for each in answers[::2]:
        assert each.token_ids == each.likeliest[:, 0].tolist()
    assert any(each.token_ids != each.likeliest[:, 0].tolist() for each in answers[1::2])


def test_an_answer_ends_with_the_first_token_that_ends_it(target: PreTrainedModel, answers: list[Answer]) -> None:
    text = answers[0].token_ids
    stop = text[5]
    (short,) = answer(target, PROMPTS[:1], [stop], 24, seed=3)
    assert short.token_ids == text[: text.index(stop) + 1]
    assert len(short.likeliest) == len(short.logprobs) == len(short.token_ids)


def test_the_same_seed_gives_the_same_texts(target: PreTrainedModel, answers: list[Answer]) -> None:
    again = answer(target, PROMPTS, STOPS, 24, seed=3)
    assert [each.token_ids for each in again] == [each.token_ids for each in answers]
    turns = [continue_texts(target, [1, 5], 4, STOPS, 8, seed) for seed in (0, 0, 1)]
    assert turns[0] == turns[1] != turns[2]
    assert not any(set(turn) & set(STOPS) for turn in turns[0])


def test_a_file_gives_back_what_was_written(answers: list[Answer], tmp_path: Path) -> None:
    write_answers(tmp_path / "00000.safetensors", answers)
    read = read_answers(tmp_path / "00000.safetensors")
    assert count_answers(tmp_path / "00000.safetensors") == len(answers)
    for mine, theirs in zip(answers, read, strict=True):
        assert (mine.prompt, mine.token_ids) == (theirs.prompt, theirs.token_ids)
        assert torch.equal(mine.likeliest, theirs.likeliest)
        assert torch.equal(mine.logprobs, theirs.logprobs)
    assert [path.name for path in tmp_path.iterdir()] == ["00000.safetensors"]
