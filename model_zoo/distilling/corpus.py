"""The prompts and answers of a distillation, in one file for each batch.

Invariant: a file's content follows from target, prompts, seed and the file's number, so a killed run loses the batch in
which it was killed.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel

from model_zoo.distilling.answers import (
    Answer,
    answer,
    continue_texts,
    count_answers,
    read_answers,
    write_answers,
    write_whole,
)
from model_zoo.distilling.prompts import as_prompt, before_user_turn, file_prompts
from model_zoo.errors import UnusableModel
from model_zoo.prepare import Notify

TOGETHER = 64  # prompts in a batch of the target
LONGEST_TURN, LONGEST_PROMPT, LONGEST_ANSWER = 128, 1024, 256  # tokens
OWN_TURNS = "user turns of the target"


def _stops(target: PreTrainedModel) -> list[int]:
    """The ids that end the target's texts, from its generation_config.json or else its config.json."""
    found = getattr(target.generation_config, "eos_token_id", None)
    return sorted(found) if isinstance(found, list) else [] if found is None else [found]


def _batched_by_length(prompts: list[tuple[str, list[int]]], seed: int) -> list[tuple[str, list[int]]]:
    """In an order in which each batch holds prompts of similar lengths, as padding takes time. The last batch is the
    one that is not full."""
    chance = random.Random(seed)
    chance.shuffle(prompts)
    whole = len(prompts) - len(prompts) % TOGETHER
    ordered = sorted(prompts[:whole], key=lambda each: len(each[1]))
    batches = [ordered[begin : begin + TOGETHER] for begin in range(0, whole, TOGETHER)]
    chance.shuffle(batches)
    return [each for batch in batches for each in batch] + prompts[whole:]


class Corpus:
    """Answers of a target. files: of prompts, by name; they are answered first."""

    def __init__(
        self, target: PreTrainedModel, model: Path, folder: Path, files: Mapping[str, Path], seed: int, tell: Notify
    ) -> None:
        self._target, self._folder, self._seed, self._tell = target, folder, seed, tell
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.stops = _stops(target)
        target.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]  # answers are drawn from its logits
        folder.mkdir(exist_ok=True)
        context = target.config.get_text_config().max_position_embeddings
        self._max_answer = min(LONGEST_ANSWER, context // 2)
        self._max_prompt = most = min(LONGEST_PROMPT, context - self._max_answer)
        self._given: list[tuple[str, list[int]]] = []
        for name, path in files.items():
            prompts = file_prompts(path, self._tokenizer)
            fitting = [(name, prompt) for prompt in prompts if 0 < len(prompt) <= most]
            if len(fitting) < len(prompts):
                tell(f"{name}: {len(prompts) - len(fitting)} prompts of more than {most} tokens are left out")
            self._given += fitting
        self._given = _batched_by_length(self._given, seed)

    def collect(self, most_s: float) -> float:
        """Adds batches until `most_s` seconds went into them, at least one. Returns the seconds of all runs."""
        took = self._folder / "seconds"
        seconds = float(took.read_text()) if took.is_file() else 0.0
        number = len(self._files())
        while number == 0 or seconds < most_s:
            begun = time.monotonic()
            seed = self._seed * 1_000_003 + number
            found = answer(self._target, self._prompts(number), self.stops, self._max_answer, seed)
            write_answers(self._folder / f"{number:05}.safetensors", found)
            number += 1
            seconds += time.monotonic() - begun
            write_whole(took, f"{seconds:.1f}\n".encode())
            self._tell(f"{number} batches of {TOGETHER} answers in {seconds / 60:.1f} min")
        return seconds

    def answers(self) -> list[list[Answer]]:
        """By batch. In each, every other answer is greedy, the first one too."""
        return [read_answers(path) for path in self._files()]

    def num_prompts(self) -> dict[str, int]:
        """Answered prompts by their source."""
        total = sum(count_answers(path) for path in self._files())
        counts = Counter(name for name, _ in self._given[:total])
        counts[OWN_TURNS] += max(total - len(self._given), 0)
        return dict(counts)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.safetensors"))

    def _prompts(self, number: int) -> list[list[int]]:
        given = self._given[number * TOGETHER : (number + 1) * TOGETHER]
        return [prompt for _, prompt in given] or self._own_turns(number)

    def _own_turns(self, number: int) -> list[list[int]]:
        start = before_user_turn(self._tokenizer)
        if not start:
            raise UnusableModel("the target has neither a chat template nor a token that begins a text: give --prompts")
        longest = min(LONGEST_TURN, self._max_prompt // 2)
        turns = continue_texts(self._target, start, TOGETHER, self.stops, longest, self._seed * 1_000_003 + number)
        prompts = [as_prompt(turn, self._tokenizer) for turn in turns]
        prompts = [prompt for prompt in prompts if 0 < len(prompt) <= self._max_prompt]
        if not prompts:
            raise UnusableModel("the target makes up no user turns: give --prompts")
        return prompts
