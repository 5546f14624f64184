"""The requests of a chaos run, made from a seed.

Invariant: the text of an answer depends on its question alone. `asked` gives the same question several times, streamed
and whole, each time with another API key, so that none finds a prompt in the KV cache that an earlier one has computed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.gateway.text.tokenizer import TargetTokenizer

MIN_PROMPT, MAX_PROMPT = 20, 1500  # tokens
TIMES_ASKED = 4  # each question, beside its undisturbed answer
CHOICES = (1, 1, 1, 1, 1, 1, 2, 2, 3, 4)  # most requests have one
KEYS = tuple(f"chaos-{number}" for number in range(TIMES_ASKED + 1))  # the first one for the undisturbed answers


@dataclass(frozen=True, slots=True)
class Question:
    """What decides the text of an answer."""

    number: int
    prompt_ids: tuple[int, ...]
    max_tokens: int
    num_choices: int
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Asking:
    """One request of a run."""

    number: int
    question: Question
    is_streamed: bool
    key: str

    def body(self, model: str) -> dict[str, Any]:
        """Of /v1/completions."""
        question = self.question
        body: dict[str, Any] = {
            "model": model,
            "prompt": list(question.prompt_ids),
            "max_tokens": question.max_tokens,
            "n": question.num_choices,
            "temperature": question.temperature,
            "top_p": 0.95 if question.temperature else 1.0,
            "seed": question.seed,
            "stream": self.is_streamed,
        }
        return body | ({"stream_options": {"include_usage": True}} if self.is_streamed else {})


@dataclass(frozen=True, slots=True)
class Lengths:
    """Bounds of prompts and answers, tokens."""

    prompt: tuple[int, int] = (MIN_PROMPT, MAX_PROMPT)
    answer: tuple[int, int] = (8, 24)


def make_questions(
    tokenizer: TargetTokenizer, texts: Sequence[str], number: int, seed: int, lengths: Lengths
) -> list[Question]:
    """Prompts are parts of the texts, joined in random order. Their lengths are uniform in the logarithm."""
    generator = random.Random(seed)
    shortest, longest = lengths.prompt
    questions = []
    for index in range(number):
        num_tokens = round(math.exp(generator.uniform(math.log(shortest), math.log(longest))))
        ids: list[int] = []
        while len(ids) < num_tokens:
            ids += tokenizer.encode_text(f"{generator.choice(texts)}\n")
        questions.append(
            Question(
                number=index,
                prompt_ids=tuple(ids[-num_tokens:]),
                max_tokens=generator.randint(*lengths.answer),
                num_choices=generator.choice(CHOICES),
                temperature=0.8 * (index % 2),
                seed=generator.randrange(1 << 31),
            )
        )
    return questions


def undisturbed(questions: Sequence[Question]) -> list[Asking]:
    """Each question once, streamed."""
    return [Asking(question.number, question, True, KEYS[0]) for question in questions]


def asked(questions: Sequence[Question], num_requests: int, seed: int) -> list[Asking]:
    """The questions in turn, in random order each time; a quarter of the requests is not streamed."""
    generator = random.Random(seed + 1)
    found: list[Asking] = []
    for key in KEYS[1:]:
        order = generator.sample(questions, len(questions))
        found += [Asking(len(found) + i, question, (i % 4) != 3, key) for i, question in enumerate(order)]
    return found[:num_requests]
