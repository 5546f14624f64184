"""One guess: drawn as the target draws, and as sure as its probability says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from services.edge_drafter.guess import Guess, GuessInputs
from shared.protocol.drafter_session import DrafterSession
from shared.protocol.messages import Bias, Sampling, Speculate, Speculation, TokenIds
from shared.protocol.running_adjustment import RunningAdjustment
from shared.protocol.sampling import History, confidence_of, draw

PROMPT, STOP_IDS = TokenIds((5, 6, 7)), TokenIds((2,))
LOGITS = np.full(10, -np.inf, dtype=np.float32)
LOGITS[:4] = np.log([0.5, 0.3, 0.15, 0.05])


def session(sampling: Sampling, min_tokens: int = 0, min_confidence: float = 0.5) -> DrafterSession:
    request = Speculate(
        "ab" * 16, 1, "cloud.0123456789ab", PROMPT, TokenIds((8, 9)), sampling, STOP_IDS, 20, Speculation(), min_tokens
    )
    state = DrafterSession.started(request, 8, 2, True, 0.0)
    state.steer(8, 2, True, min_confidence)
    return state


def inputs_of(state: DrafterSession) -> GuessInputs:
    running = RunningAdjustment.of(state.request)
    if running is not None:
        running.extend(state.tokens[running.length :])
    return GuessInputs.of(state, running)


def test_a_guess_is_as_sure_as_its_probability() -> None:
    guess = inputs_of(session(Sampling())).draw(LOGITS)
    assert guess.token_id == 0
    assert guess.confidence == pytest.approx(0.5, abs=1e-6)


def test_logits_of_any_size_give_a_probability() -> None:
    assert confidence_of(0, np.array([3e4, 0.0, -3e4], dtype=np.float32)) == 1.0
    assert confidence_of(2, np.array([0.0, 0.0, -np.inf], dtype=np.float32)) == 0.0


@pytest.mark.parametrize("temperature", [0.01, 1.0, 5.0])
def test_the_temperature_does_not_change_how_sure_a_guess_is(temperature: float) -> None:
    guesses = [inputs_of(session(Sampling(temperature, seed=seed))).draw(LOGITS) for seed in range(20)]
    for guess in guesses:
        assert guess.confidence == pytest.approx(math.exp(LOGITS[guess.token_id]), abs=1e-6)
    assert (temperature > 0.5) == (len({guess.token_id for guess in guesses}) > 1)


def test_a_guess_that_a_bias_makes_certain_is_sure() -> None:
    guess = inputs_of(session(Sampling(logit_bias=(Bias(3, 100.0),)))).draw(LOGITS)
    assert guess == Guess(3, pytest.approx(1.0))


def test_without_a_threshold_nobody_computes_how_sure_a_guess_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.edge_drafter.guess.confidence_of", lambda *_: pytest.fail("asked for nothing"))
    assert inputs_of(session(Sampling(), min_confidence=0.0)).draw(LOGITS) == Guess(0, 1.0)


def test_a_request_without_penalties_has_nothing_to_count() -> None:
    assert inputs_of(session(Sampling(1.0, top_p=0.9))).running is None


def test_a_stop_id_is_no_guess_before_min_tokens() -> None:
    likely_stop = np.zeros(10, dtype=np.float32)
    likely_stop[1:3] = 1.0, 9.0
    assert inputs_of(session(Sampling(), min_tokens=2)).draw(likely_stop).token_id == 2
    assert inputs_of(session(Sampling(), min_tokens=3)).draw(likely_stop).token_id == 1


def test_a_guess_is_the_draw_that_the_target_makes_from_equal_logits() -> None:
    logits = np.random.default_rng(1).normal(0, 3, 50).astype(np.float32)
    for seed in range(20):
        options = Sampling(0.9, 20, 0.95, seed=seed, presence_penalty=1.0, repetition_penalty=1.5)
        expected = draw(logits, options, 5, History(PROMPT, (8, 9), STOP_IDS))
        assert inputs_of(session(options)).draw(logits).token_id == expected
