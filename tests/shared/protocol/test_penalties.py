"""Penalties, biases and min_tokens: the scores they make, and who counts as seen (docs/sampling.md)."""

from __future__ import annotations

import random

import numpy as np
import pytest

from shared.protocol.messages import Bias, Sampling, TokenIds
from shared.protocol.sampling import History, adjusted, draw, is_adjusted
from tests.reference import long_way

VOCABULARY = 40
OPTIONS = {
    "presence": Sampling(presence_penalty=0.7),
    "frequency": Sampling(frequency_penalty=-0.4),
    "repetition": Sampling(repetition_penalty=1.3),
    "bias": Sampling(logit_bias=(Bias(3, 5.0), Bias(9, -100.0))),
    "all": Sampling(0, 0, 1, 0, 0, 1.5, 0.25, 0.8, (Bias(0, -2.5), Bias(39, 1.0))),
}


def history_of(seed: int, num_output: int, min_tokens: int = 0) -> History:
    rng = random.Random(seed)
    prompt, output = ([rng.randrange(VOCABULARY) for _ in range(num)] for num in (12, num_output))
    return History(prompt, output, (1, 2), min_tokens)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("num_output", [0, 1, 25])
def test_scores_are_those_of_the_long_way(name: str, num_output: int) -> None:
    logits = np.random.default_rng(num_output).normal(size=VOCABULARY).astype(np.float32) * 3
    for min_tokens in (0, 10):
        history = history_of(7, num_output, min_tokens)
        expected = long_way(logits, OPTIONS[name], history)
        assert adjusted(logits, OPTIONS[name], history).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_request_without_options_keeps_its_logits_as_they_are() -> None:
    logits = np.arange(VOCABULARY, dtype=np.float32)
    assert not is_adjusted(Sampling(0.8, top_p=0.9))
    assert adjusted(logits, Sampling(0.8), history_of(1, 5)) is logits


def test_the_prompt_counts_for_the_repetition_penalty_alone() -> None:
    logits = np.ones(VOCABULARY, dtype=np.float32)
    history = History(TokenIds((5,)), TokenIds())
    assert adjusted(logits, OPTIONS["repetition"], history)[5] < 1
    assert adjusted(logits, OPTIONS["presence"], history)[5] == 1
    assert adjusted(logits, OPTIONS["frequency"], history)[5] == 1


def test_no_stop_id_is_drawn_before_min_tokens_and_any_may_be_behind() -> None:
    logits = np.zeros(VOCABULARY, dtype=np.float32)
    logits[1] = 50
    early, late = history_of(3, 4, min_tokens=5), history_of(3, 5, min_tokens=5)
    assert draw(logits, Sampling(), 20, early) not in (1, 2)
    assert draw(logits, Sampling(), 20, late) == 1


def test_a_bias_of_minus_100_bans_and_one_of_100_forces() -> None:
    logits = np.random.default_rng(1).normal(size=VOCABULARY).astype(np.float32)
    history = history_of(4, 3)
    best = draw(logits, Sampling(), 20, history)
    assert draw(logits, Sampling(logit_bias=(Bias(best, -100.0),)), 20, history) != best
    forced = Sampling(1.0, seed=5, logit_bias=(Bias(17, 100.0),))
    assert {draw(logits, forced, position, history) for position in range(50)} == {17}


def test_filters_see_the_adjusted_scores() -> None:
    logits = np.zeros(VOCABULARY, dtype=np.float32)
    logits[[4, 6]] = 3, 2
    sampling = Sampling(1.0, top_k=1, logit_bias=(Bias(6, 2.0),))
    assert draw(logits, sampling, 3, history_of(1, 0)) == 6


def test_scores_that_leave_no_token_are_refused() -> None:
    logits = np.full(VOCABULARY, -np.inf, dtype=np.float32)
    logits[1] = 0
    with pytest.raises(ValueError, match="position 20"):
        draw(logits, Sampling(), 20, history_of(3, 0, min_tokens=5))
