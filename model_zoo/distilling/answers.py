"""The target's answers, with its distribution at each of their tokens, in files that a killed run leaves usable.

Invariant: a file holds one whole batch. Its content depends on target, prompts and seed alone, so a run that begins
again goes on after the last file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

NUM_LIKELIEST = 64  # tokens of a distribution that are kept
GREEDY, SAMPLED = 1e-6, 0.8  # temperatures of the two kinds of answers


@dataclass(frozen=True)
class Answer:
    """likeliest, logprobs: [answer tokens, NUM_LIKELIEST] of the target before each token, at temperature 1."""

    prompt: list[int]
    token_ids: list[int]
    likeliest: Tensor  # int32
    logprobs: Tensor  # float16


def answer(
    target: PreTrainedModel, prompts: Sequence[Sequence[int]], stops: Sequence[int], max_tokens: int, seed: int
) -> list[Answer]:
    """The target's answers to a batch of prompts: every other one greedy, the rest at temperature SAMPLED."""
    temperatures = [GREEDY if number % 2 == 0 else SAMPLED for number in range(len(prompts))]
    torch.manual_seed(seed)
    texts, watched = _generate(target, prompts, temperatures, stops, max_tokens)
    likeliest = torch.stack([ids for ids, _ in watched.steps], 1)  # [prompts, steps, NUM_LIKELIEST]
    logprobs = torch.stack([values for _, values in watched.steps], 1)
    return [
        Answer(list(prompt), text, likeliest[row, : len(text)].clone(), logprobs[row, : len(text)].clone())
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]


def continue_texts(
    target: PreTrainedModel, start: Sequence[int], number: int, stops: Sequence[int], max_tokens: int, seed: int
) -> list[list[int]]:
    """`number` texts that the target writes after `start` at temperature 1, without the token that ends them."""
    torch.manual_seed(seed)
    texts, _ = _generate(target, [start] * number, [1.0] * number, stops, max_tokens)
    return [[token_id for token_id in text if token_id not in stops] for text in texts]


class _Drawn(LogitsProcessor):
    """Keeps the likeliest tokens of each step, and draws one of them: drawing from all takes as long as the model."""

    def __init__(self, temperatures: Sequence[float], device: torch.device) -> None:
        self.steps: list[tuple[Tensor, Tensor]] = []
        self._temperatures = torch.tensor(temperatures, device=device)[:, None]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float()
        top = scores.topk(min(NUM_LIKELIEST, scores.shape[-1]))
        logprobs = top.values - scores.logsumexp(-1, keepdim=True)
        self.steps.append((top.indices.int().cpu(), logprobs.half().cpu()))
        drawn = torch.multinomial((logprobs / self._temperatures).softmax(-1), 1)
        drawn = drawn.masked_fill(self._temperatures == GREEDY, 0)  # of equal ones the first
        return torch.full_like(scores, -torch.inf).scatter_(-1, top.indices.gather(-1, drawn), 0.0)


@torch.inference_mode()
def _generate(
    target: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    stops: Sequence[int],
    max_tokens: int,
) -> tuple[list[list[int]], _Drawn]:
    """The texts after the prompts, each with the token that ends it."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    drawn = _Drawn(temperatures, target.device)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_tokens, do_sample=False, eos_token_id=list(stops) or None, pad_token_id=0
    )
    output = target.generate(  # type: ignore[operator]
        ids.to(target.device),
        attention_mask=mask.to(target.device),
        generation_config=config,
        logits_processor=LogitsProcessorList([drawn]),
    )
    rows = output[:, longest:].tolist()
    return [_to_its_end(row, stops) for row in rows], drawn


def _to_its_end(token_ids: list[int], stops: Sequence[int]) -> list[int]:
    end = next((place for place, token_id in enumerate(token_ids) if token_id in stops), len(token_ids) - 1)
    return token_ids[: end + 1]


# --- files ------------------------------------------------------------------------------------------------------------


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Writes a file, whole or not at all."""
    tensors = {
        "prompt_lengths": torch.tensor([len(each.prompt) for each in answers]),
        "answer_lengths": torch.tensor([len(each.token_ids) for each in answers]),
        "ids": torch.tensor([i for each in answers for i in (*each.prompt, *each.token_ids)], dtype=torch.int32),
        "likeliest": torch.cat([each.likeliest for each in answers]),
        "logprobs": torch.cat([each.logprobs for each in answers]),
    }
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished)
    unfinished.replace(path)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a small file, whole or not at all."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def count_answers(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return int(file.get_slice("answer_lengths").get_shape()[0])


def read_answers(path: Path) -> list[Answer]:
    tensors = load_file(path)
    ids, found = tensors["ids"].tolist(), []
    place = begun = 0
    lengths = zip(tensors["prompt_lengths"].tolist(), tensors["answer_lengths"].tolist(), strict=True)
    for num_prompt, num_answer in lengths:
        split, end = place + num_prompt, place + num_prompt + num_answer
        rows = slice(begun, begun + num_answer)
        found.append(Answer(ids[place:split], ids[split:end], tensors["likeliest"][rows], tensors["logprobs"][rows]))
        place, begun = end, begun + num_answer
    return found
