"""Prompts of a given length, the same on every machine with the same Python.

Short prompts are the default questions as they are, about 50 tokens with the chat template. Longer ones ask about a
passage of Python's own language reference (`pydoc_data`), cut to the number of tokens.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from pydoc_data.topics import topics

from benchmarks.harness.prompts import DEFAULT_PROMPTS, encode_prompts
from benchmarks.peers.cells import SHORT, Cell
from model_zoo.prompt_file import read_prompts
from services.gateway.text.tokenizer import TargetTokenizer

NUM_LONG = 24  # different prompts of a length
ORDERS = ("Summarise this text.", "Explain this text to a beginner.", "List the main points of this text.")


def prompts_of(num_tokens: int, tokenizer: TargetTokenizer, seed: int) -> list[str]:
    if num_tokens == SHORT:
        return read_prompts(DEFAULT_PROMPTS)
    words = " ".join(text for _, text in sorted(topics.items())).split()
    draw = random.Random(f"{seed} {num_tokens}")
    starts = [draw.randrange(len(words) - num_tokens) for _ in range(NUM_LONG)]
    return [
        _cut(ORDERS[number % len(ORDERS)], words[start : start + num_tokens], num_tokens, tokenizer)
        for number, start in enumerate(starts)
    ]


def prompts_of_round(prompts: Sequence[str], cell: Cell, number: int, seed: int) -> list[str]:
    """One for each client. A cell repeats a prompt only when it has had them all."""
    order = random.Random(f"{seed} {cell.name}").sample(prompts, len(prompts))
    first = number * cell.num_clients
    return [order[(first + each) % len(order)] for each in range(cell.num_clients)]


def _cut(order: str, words: Sequence[str], num_tokens: int, tokenizer: TargetTokenizer) -> str:
    """The longest prompt of at most `num_tokens`. A word has at least a token."""

    def prompt(num_words: int) -> str:
        return f"{order}\n\n{' '.join(words[:num_words])}"

    def length(num_words: int) -> int:
        return len(encode_prompts(tokenizer, [prompt(num_words)])[0])

    return prompt(bisect_right(range(len(words) + 1), num_tokens, key=length) - 1)
