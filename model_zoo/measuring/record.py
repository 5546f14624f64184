"""Records a pair: the target's answers to prompts, and for each token whether the draft guesses it.

Invariant: an answer is computed and drawn as the verifier does it, a guess as the drafter does it, after the true text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from services.cloud_verifier.torch_engine.model import Row, TargetModel
from services.edge_drafter.model import DraftModel
from shared.data.recording import Recorded
from shared.policies.reading import FIRST_READ
from shared.protocol.messages import Sampling
from shared.protocol.sampling import confidence_of, draw

NUM_TOGETHER = 8  # prompts in one batch of the target


def prompt_ids(folder: Path, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, as a user message in the target's chat template, or as plain text if it has none."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    if tokenizer.chat_template is None:
        return [tokenizer(prompt)["input_ids"] for prompt in prompts]
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)) for chat in chats]


def stop_ids(folder: Path) -> frozenset[int]:
    """The ids that end the target's text, from its files."""
    found = GenerationConfig.from_pretrained(str(folder)).eos_token_id
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])


def record(
    target: TargetModel,
    draft: DraftModel,
    prompts: Sequence[Sequence[int]],
    stops: Collection[int],
    sampling: Sampling,
    max_tokens: int,
    most_read: int | None = None,
) -> Iterator[Recorded]:
    """Yields a record for each prompt. Raises ValueError for a prompt that leaves no room for an answer.

    most_read: tokens of a prompt that the draft reads, more than FIRST_READ; None: all.
    """
    room = min(target.max_context, draft.max_context)
    texts = answers(target, prompts, stops, sampling, max_tokens, room)
    for prompt, answer in zip(prompts, texts, strict=True):
        yield _judged(draft, prompt, answer, sampling, most_read or len(prompt))


def answers(
    target: TargetModel,
    prompts: Sequence[Sequence[int]],
    stops: Collection[int],
    sampling: Sampling,
    max_tokens: int,
    room: int,
) -> Iterator[list[int]]:
    """Yields the target's answers. Raises ValueError for a prompt that exceeds `room` with its answer."""
    for number, prompt in enumerate(prompts, start=1):
        if len(prompt) + max_tokens > room:
            raise ValueError(
                f"prompt {number}: {len(prompt)} tokens and an answer of {max_tokens} exceed the context of {room}"
            )
    for first in range(0, len(prompts), NUM_TOGETHER):
        yield from _together(target, prompts[first : first + NUM_TOGETHER], stops, sampling, max_tokens)


def _together(
    target: TargetModel,
    prompts: Sequence[Sequence[int]],
    stops: Collection[int],
    sampling: Sampling,
    max_tokens: int,
) -> list[list[int]]:
    """The target's answers to a batch; each pass draws one token of each."""
    caches = [target.new_cache(len(prompt) + max_tokens) for prompt in prompts]
    texts = [list(prompt) for prompt in prompts]
    ends = [len(prompt) + max_tokens for prompt in prompts]
    while open_ := [i for i, text in enumerate(texts) if len(text) < ends[i]]:
        rows = [Row(caches[i], caches[i].length, texts[i][caches[i].length :], 1, sampling) for i in open_]
        for i, drawn in zip(open_, target.step(rows), strict=True):
            texts[i].extend(drawn.token_ids)
            if texts[i][-1] in stops:
                ends[i] = len(texts[i])
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


def _judged(
    draft: DraftModel, prompt: Sequence[int], answer: Sequence[int], sampling: Sampling, most_read: int
) -> Recorded:
    cache = draft.new_cache(len(prompt) + len(answer))
    right: list[bool] = []
    confidence: list[float] = []
    fed = list(prompt)
    del fed[FIRST_READ : FIRST_READ + max(0, len(prompt) - most_read)]
    for position, token_id in enumerate(answer, start=len(prompt)):
        logits = draft.feed(cache, fed, cache.length)
        guess = draw(logits, sampling, position)
        right.append(guess == token_id)
        confidence.append(round(max(confidence_of(guess, logits), 1e-6), 6))
        fed = [token_id]
    return Recorded(tuple(prompt), tuple(answer), tuple(right), tuple(confidence))
