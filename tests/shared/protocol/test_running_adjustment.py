"""Adjustments kept up to date as a text grows and is rolled back: the same bits as from the whole text."""

from __future__ import annotations

import random

import numpy as np
import pytest

from shared.protocol.messages import Bias, Sampling
from shared.protocol.running_adjustment import RunningAdjustment
from shared.protocol.sampling import Adjustment, History, adjusted, adjustment

VOCABULARY = 60
OPTIONS = {
    "presence": Sampling(presence_penalty=0.7),
    "frequency": Sampling(frequency_penalty=-0.1),
    "repetition": Sampling(repetition_penalty=1.3),
    "bias": Sampling(logit_bias=(Bias(3, 5.0), Bias(1, -100.0), Bias(9, 0.3))),
    "all": Sampling(0, 0, 1, 0, 0, 1.5, 0.3, 0.7, (Bias(0, -2.5), Bias(2, 1.0), Bias(59, 0.1))),
}


def sorted_by_id(changes: Adjustment) -> list[list[float]]:
    order = np.argsort(changes.token_ids)
    return [column[order].tolist() for column in changes]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("min_tokens", [0, 7])
def test_changes_of_a_text_that_grows_and_is_rolled_back_are_those_of_the_whole_text(
    name: str, min_tokens: int
) -> None:
    rng = random.Random(f"{name} {min_tokens}")
    logits = np.random.default_rng(5).normal(size=VOCABULARY).astype(np.float32) * 3
    prompt, stop_ids = [rng.randrange(VOCABULARY) for _ in range(12)], (1, 2)
    running = RunningAdjustment(OPTIONS[name], prompt, stop_ids, min_tokens)
    output: list[int] = []
    for _ in range(400):
        if rng.random() < 0.4:
            length = rng.randrange(len(output) + 4)
            running.roll_back(len(prompt) + length)
            del output[length:]
        new = [rng.randrange(VOCABULARY) for _ in range(rng.randrange(6))]
        running.extend(new)
        output += new
        history = History(prompt, output, stop_ids, min_tokens)
        scores = running.current.apply(logits)
        assert (running.length, list(running.output_ids)) == (len(prompt) + len(output), output)
        assert scores.tobytes() == np.asarray(adjusted(logits, OPTIONS[name], history), np.float64).tobytes()
        if not min_tokens and name != "bias":  # a table may list other tokens, without a change
            assert sorted_by_id(running.current) == sorted_by_id(adjustment(OPTIONS[name], history))


def test_the_prompt_is_never_rolled_back() -> None:
    running = RunningAdjustment(Sampling(repetition_penalty=2.0), [4, 5])
    running.extend([5, 6])
    running.roll_back(0)
    assert running.length == 2
    assert running.current.token_ids.tolist() == [4, 5]


def test_of_many_tokens_only_those_that_still_occur_are_listed() -> None:
    running = RunningAdjustment(Sampling(presence_penalty=1.0), [0] * 8)
    running.extend(range(500))
    running.roll_back(8 + 3)
    assert running.current.token_ids.tolist() == [0, 1, 2]
