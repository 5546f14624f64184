"""Acceptance models: each has the rates that it was given."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dsd_sim.engine.acceptance import AcceptanceModel, ByPosition, Independent, Markov, RecordedAnswer, Replay

NUM = 20_000


def filled(
    model: AcceptanceModel, num_tokens: int, num_answers: int = 1
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Both arrays: [answers, tokens]."""
    rng = np.random.default_rng(3)
    right, confidence = np.zeros((num_answers, num_tokens), np.bool_), np.zeros((num_answers, num_tokens), np.float32)
    for row in range(num_answers):
        model.fill(right[row], confidence[row], rng)
    return right, confidence


def test_independent_guesses_have_their_rate_and_no_memory() -> None:
    right, confidence = filled(Independent(0.7), NUM)
    assert right.mean() == pytest.approx(0.7, abs=0.01)
    assert right[0, 1:][right[0, :-1]].mean() == pytest.approx(0.7, abs=0.015)
    assert (confidence == np.float32(0.7)).all()


def test_guesses_by_position_have_the_rate_of_each_position_and_then_the_last_rate() -> None:
    right, confidence = filled(ByPosition((0.9, 0.5, 0.2)), 5, NUM)
    assert right.mean(axis=0) == pytest.approx((0.9, 0.5, 0.2, 0.2, 0.2), abs=0.015)
    assert confidence[0] == pytest.approx((0.9, 0.5, 0.2, 0.2, 0.2))


def test_markov_guesses_have_the_rates_and_transition_probabilities_given() -> None:
    model = Markov(easy=0.95, hard=0.3, to_hard=0.05, to_easy=0.2)
    right, confidence = filled(model, NUM * 10)
    is_easy = confidence[0] == np.float32(0.95)
    assert is_easy.mean() == pytest.approx(0.2 / 0.25, abs=0.02)
    assert right[0, is_easy].mean() == pytest.approx(0.95, abs=0.01)
    assert right[0, ~is_easy].mean() == pytest.approx(0.3, abs=0.02)
    leaves = is_easy[:-1] & ~is_easy[1:]
    assert leaves.sum() / is_easy[:-1].sum() == pytest.approx(0.05, abs=0.005)
    returns = ~is_easy[:-1] & is_easy[1:]
    assert returns.sum() / (~is_easy[:-1]).sum() == pytest.approx(0.2, abs=0.02)


def test_a_state_without_transitions_lasts_for_the_whole_answer() -> None:
    _, confidence = filled(Markov(easy=0.9, hard=0.1, to_hard=0.0, to_easy=0.5), 1000)
    assert (confidence == np.float32(0.9)).all()


def test_a_replay_repeats_a_recorded_answer_from_its_start() -> None:
    recorded = [
        RecordedAnswer(np.array([True, True, False]), np.array([0.9, 0.2, 0.8], np.float32)),
        RecordedAnswer(np.array([False, True]), np.array([0.1, 0.3], np.float32)),
    ]
    right, confidence = filled(Replay(tuple(recorded)), 7, 200)
    expected = [(np.resize(each.right, 7), np.resize(each.confidence, 7)) for each in recorded]
    picked = [
        [np.array_equal(right[row], r) and np.array_equal(confidence[row], c) for r, c in expected]
        for row in range(200)
    ]
    assert all(sum(each) == 1 for each in picked)
    assert 60 < sum(first for first, _ in picked) < 140
