"""How near two answers were to being equal: the gap between the two candidates where they first differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.protocol.guesses import common_prefix
from shared.protocol.messages import Sampling
from shared.protocol.sampling import gumbel, is_greedy
from tests.e2e.yardstick import PlainModel


@dataclass(frozen=True, slots=True)
class Difference:
    """Two answers to one request that differ."""

    number: int  # of the request
    index: int  # of the first different token
    gap: float  # between both tokens, in logits of a plain float32 model, with the noise of the draw
    top_gap: float  # between its two highest logits

    def __str__(self) -> str:
        return f"request {self.number}, token {self.index}: gap {self.gap:.2e}, of the two highest {self.top_gap:.2e}"


def differences(
    plain: PlainModel,
    requests: Sequence[tuple[list[int], Sampling]],
    left: Sequence[list[int]],
    right: Sequence[list[int]],
) -> list[Difference]:
    """Every request whose answers differ. Both answers must be of one length up to the difference."""
    found = []
    for number, ((prompt, sampling), one, other) in enumerate(zip(requests, left, right, strict=True)):
        index = common_prefix(one, other)
        if index < max(len(one), len(other)):
            assert index < min(len(one), len(other)), f"request {number}: one answer ends within the other"
            found.append(_difference(plain, number, prompt, sampling, one[: index + 1], other[index]))
    return found


def _difference(
    plain: PlainModel, number: int, prompt: Sequence[int], sampling: Sampling, one: Sequence[int], other: int
) -> Difference:
    logits = plain.logprobs(prompt, one)[-1].numpy()
    highest = np.sort(logits)[-2:]
    both = np.array([one[-1], other])
    scores = logits[both]
    if not is_greedy(sampling):
        scores = scores / sampling.temperature + gumbel(sampling.seed, len(prompt) + len(one) - 1, both)
    return Difference(number, len(one) - 1, float(abs(scores[0] - scores[1])), float(highest[1] - highest[0]))
