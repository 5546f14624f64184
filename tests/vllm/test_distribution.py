"""Sampled tokens have the model's distribution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare

from services.cloud_verifier.engine import StepRow
from services.cloud_verifier.vllm_engine.engine import VllmEngine
from shared.protocol.messages import Sampling
from tests.e2e.yardstick import PlainModel
from tests.vllm import tiny
from tests.vllm.conftest import loaded
from tests.vllm.driver import opening

NUM_SEEDS, AT_ONCE, NUM_BINS = 6400, 64, 40

pytestmark = pytest.mark.timeout(600)


def test_sampled_tokens_have_the_models_distribution_with_right_and_wrong_guesses(
    tmp_path: Path,
) -> None:
    """Draws of many seeds after one text, and after an accepted guess; the control expects another temperature."""
    folder = tiny.save(tiny.llama(), tmp_path)
    plain, prompt, temperature = PlainModel(folder), list(range(3, 15)), 2.0  # flat enough for many likely tokens
    likely = int(plain.logits(prompt, [0])[0].argmax())
    with loaded(folder, vllm_args=tiny.FLAGS) as engine:
        first, second = draws_of(engine, prompt, likely, temperature)
    assert len(second) > NUM_SEEDS / 20, "too few guesses are right to show anything"
    for draws, text in ((first, [0]), (second, [likely, 0])):
        logits = plain.logits(prompt, text)[-1]
        assert fit(draws, logits, temperature) > 1e-3
    assert fit(first, plain.logits(prompt, [0])[-1], 1.25 * temperature) < 1e-6


def draws_of(engine: VllmEngine, prompt: list[int], guess: int, temperature: float) -> tuple[list[int], list[int]]:
    """The tokens after `prompt` for all seeds, with one guess for all, and those after the guess where it is right."""
    first, second = [], []
    for start in range(0, NUM_SEEDS, AT_ONCE):
        contexts = []
        for seed in range(start, start + AT_ONCE):
            request = opening(seed, prompt, 4, sampling=Sampling(temperature, seed=seed), cache_scope="shared")
            context = engine.open(request, prompt)
            assert context is not None
            contexts.append(context)
        for few in (contexts[i : i + AT_ONCE // 4] for i in range(0, AT_ONCE, AT_ONCE // 4)):  # within the budget
            engine.step([StepRow(context, 0, prompt[:-1], 0) for context in few])
        rows = [StepRow(context, len(prompt) - 1, [prompt[-1], guess], 2) for context in contexts]
        for computed in engine.step(rows):
            ids = computed.drawn.token_ids
            first.append(ids[0])
            second += ids[1:]
        for context in contexts:
            engine.close(context, prompt)
    return first, second


def fit(draws: Sequence[int], logits: torch.Tensor, temperature: float) -> float:
    """p-value of the draws under softmax(logits / temperature), over the likeliest tokens and all others."""
    shares: NDArray[np.float64] = torch.softmax(logits.double() / temperature, dim=-1).numpy()
    bins = np.argsort(-shares)[:NUM_BINS]
    counts = Counter(draws)
    observed = np.array([counts[int(token_id)] for token_id in bins] + [0.0])
    observed[-1] = len(draws) - observed.sum()
    expected = np.append(shares[bins], 1 - shares[bins].sum()) * len(draws)
    return float(chisquare(observed, expected).pvalue)
