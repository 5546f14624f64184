"""What transformers itself says about a text of ours: a plain model, loaded apart from every part of the services.

Invariant: nothing here goes through our forward pass, cache, sampler or sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig


@dataclass(frozen=True, slots=True)
class Departure:
    """A token of ours that transformers would not have taken."""

    index: int  # in the answer
    margin: float  # of transformers' best logit over that of our token


class PlainModel:
    """A causal language model in float32, as transformers runs it by default."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()

    def generate(self, text: Sequence[int], max_tokens: int, stop_ids: Sequence[int]) -> tuple[list[int], Tensor]:
        """The greedy continuation, and its logits [tokens, vocab]."""
        ids = torch.tensor([text], device=self._model.device)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=list(stop_ids),
            pad_token_id=stop_ids[0],
            return_dict_in_generate=True,
            output_logits=True,
        )
        made = self._model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        return made.sequences[0, len(text) :].tolist(), torch.cat(made.logits)

    def departures(
        self, prompt: Sequence[int], answer: Sequence[int], max_tokens: int, stop_ids: Sequence[int]
    ) -> list[Departure]:
        """Where greedy `generate` leaves the answer. Behind a departure it starts again from our text, so that every
        token is compared. Raises AssertionError for an answer that ends too early or too late."""
        found: list[Departure] = []
        done = 0  # tokens of the answer that are compared
        while done < max_tokens and not (done and answer[done - 1] in stop_ids):
            theirs, logits = self.generate([*prompt, *answer[:done]], max_tokens - done, stop_ids)
            ours = answer[done:]
            at = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
            if at is None:
                done += len(theirs)
                break
            margin = float(logits[at].max() - logits[at, ours[at]])
            found.append(Departure(done + at, margin))
            done += at + 1
        assert done == len(answer), f"{len(answer)} tokens, generate has {done}"
        return found

    @torch.inference_mode()
    def num_best(self, prompt: Sequence[int], answer: Sequence[int]) -> int:
        """How many tokens of the answer are the argmax of one forward pass over the whole text."""
        text = torch.tensor([[*prompt, *answer]], device=self._model.device)
        best = self._model(text[:, :-1]).logits[0, len(prompt) - 1 :].argmax(dim=-1)
        return int((best == text[0, len(prompt) :]).sum())

    @torch.inference_mode()
    def logits(self, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """Logits [answer, vocab] at every position of the answer, by one forward pass over the text."""
        text = torch.tensor([[*prompt, *answer]], device=self._model.device)
        return self._model(text[:, :-1]).logits[0, len(prompt) - 1 :]

    def logprobs(self, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """Log-softmax [answer, vocab] float64 at every position of the answer."""
        return torch.log_softmax(self.logits(prompt, answer).double(), dim=-1)
