"""Judges a distilled draft, for its card.

Acceptance is judged on held-out prompts with the exported graph, guess by guess as a drafter makes them, after the
target's own text. At temperature 0.8 guess and target draw with the same noise (docs/sampling.md), the target from its
likeliest tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_zoo.distilling.answers import SAMPLED, Answer
from services.edge_drafter.model import DraftModel
from shared.data.draft_card import Acceptance, Progress
from shared.protocol.messages import Sampling
from shared.protocol.sampling import draw

PLOT = "acceptance.svg"
HALF_HOUR_S = 1800.0


def judge(draft: DraftModel, answers: Sequence[Answer], seed: int) -> tuple[Acceptance, float]:
    """The acceptance on these answers, and the median milliseconds of a step."""
    right = {0.0: 0, SAMPLED: 0}
    steps_ms: list[float] = []
    for answer in answers:
        cache, fed = draft.new_cache(len(answer.prompt) + len(answer.token_ids)), list(answer.prompt)
        for place, token_id in enumerate(answer.token_ids):
            begun = time.perf_counter()
            logits = draft.feed(cache, fed, cache.length)
            if len(fed) == 1:
                steps_ms.append((time.perf_counter() - begun) * 1000)
            truth = np.full(draft.vocab_size, -np.inf, np.float32)
            truth[answer.likeliest[place].numpy()] = answer.logprobs[place].float().numpy()
            for temperature in right:
                sampling = Sampling(temperature=temperature, seed=seed)
                position = cache.length
                right[temperature] += draw(logits, sampling, position) == draw(truth, sampling, position)
            fed = [token_id]
    total = sum(len(answer.token_ids) for answer in answers)
    greedy, sampled = (round(number / total, 4) for number in right.values())
    return Acceptance(greedy, sampled, total, len(answers)), round(statistics.median(steps_ms), 3)


def half_hours(progress: Sequence[Progress]) -> list[Progress]:
    """The last look in each half hour."""
    last: dict[int, Progress] = {}
    for each in progress:
        last[int(each.seconds // HALF_HOUR_S)] = each
    return list(last.values())


def plot(progress: Sequence[Progress], path: Path) -> None:
    """Draws acceptance over time, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([each.seconds / 3600 for each in progress], [each.acceptance for each in progress], marker=".")
    axes.set(xlabel="hours of distillation", ylabel="acceptance, held-out prompts, T = 0", ylim=(0, 1))
    axes.grid(alpha=0.3)
    figure.savefig(path, format="svg", metadata={"Date": None})
