"""The requests of a chaos run: their lengths, and how often each question is asked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from benchmarks.chaos.questions import KEYS, Lengths, asked, make_questions, undisturbed
from services.gateway.text.tokenizer import load_tokenizer

TEXTS = ["The sea is wide.", "Bread is baked in an oven, and eaten warm or cold."]


def test_questions_follow_their_seed_and_keep_their_bounds(default_models: Path) -> None:
    tokenizer = load_tokenizer(default_models / "target")
    made = [make_questions(tokenizer, TEXTS, 60, seed, Lengths((20, 300), (8, 16))) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    assert min(len(question.prompt_ids) for question in made[0]) >= 20
    assert 200 < max(len(question.prompt_ids) for question in made[0]) <= 300
    assert {question.num_choices for question in made[0]} == {1, 2, 3, 4}
    assert {question.temperature for question in made[0]} == {0.0, 0.8}


def test_a_question_is_asked_with_another_key_each_time_streamed_and_whole(default_models: Path) -> None:
    tokenizer = load_tokenizer(default_models / "target")
    questions = make_questions(tokenizer, TEXTS, 10, 1, Lengths((20, 30)))
    askings = asked(questions, 38, seed=1)
    assert [asking.number for asking in askings] == list(range(38))
    assert max(Counter(asking.question.number for asking in askings).values()) == 4
    keys = [(asking.question.number, asking.key) for asking in [*undisturbed(questions), *askings]]
    assert len(keys) == len(set(keys))
    assert {asking.key for asking in askings} == set(KEYS[1:])
    assert {asking.is_streamed for asking in askings} == {True, False}
    assert all(asking.is_streamed for asking in undisturbed(questions)), "their pieces are timed"
