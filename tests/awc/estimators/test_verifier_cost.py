"""The cost line of a verifier: fitted to reports, never negative, shared by the verifier's pairs."""

from __future__ import annotations

import random

import numpy as np
import pytest

from awc.estimators import verifier_cost
from awc.estimators.verifier_cost import PerVerifier, VerifierCostLine


def fitted(samples: list[tuple[float, float]]) -> VerifierCostLine:
    cost = VerifierCostLine(keep=0.99)
    for num_tokens, elapsed_ms in samples:
        cost.observe(num_tokens, elapsed_ms)
    return cost


def test_the_fit_finds_the_line_behind_noisy_samples() -> None:
    chance = random.Random(2)
    tokens = [chance.uniform(8, 64) for _ in range(300)]
    cost = fitted([(n, (20 + 0.5 * n) * chance.uniform(0.95, 1.05)) for n in tokens])
    assert cost.per_token_ms == pytest.approx(0.5, rel=0.1)
    assert cost.base_ms == pytest.approx(20, rel=0.1)


def test_the_fit_is_that_of_weighted_least_squares_when_samples_are_many() -> None:
    chance = random.Random(3)
    samples = [(chance.uniform(1, 500), chance.uniform(10, 90)) for _ in range(200)]
    tokens, times = np.array(samples).T
    weights = 0.99 ** np.arange(len(samples))[::-1]
    slope, base = np.polyfit(tokens, times + 0.2 * tokens, 1, w=np.sqrt(weights))
    cost = fitted([(n, ms + 0.2 * n) for n, ms in samples])
    assert (cost.per_token_ms, cost.base_ms) == (pytest.approx(slope, rel=1e-3), pytest.approx(base, rel=1e-3))


def test_after_one_sample_the_line_goes_through_it_and_rises_gently() -> None:
    cost = fitted([(8.0, 40.0)])
    assert cost.base_ms + 8 * cost.per_token_ms == pytest.approx(40)
    assert 0.1 < cost.per_token_ms < 1


def test_before_the_first_sample_nothing_is_known() -> None:
    cost = VerifierCostLine(keep=0.99)
    assert (cost.is_known, cost.base_ms, cost.per_token_ms) == (False, 0.0, 0.0)


def test_the_line_follows_a_verifier_that_gets_slower() -> None:
    sizes = [8.0, 16.0, 32.0] * 200
    cost = fitted([(n, 20 + 0.1 * n) for n in sizes] + [(n, 30 + n) for n in sizes])
    assert (cost.base_ms, cost.per_token_ms) == (pytest.approx(30, abs=0.5), pytest.approx(1, abs=0.02))


@pytest.mark.parametrize("times", [(90.0, 10.0), (1.0, 500.0)])
def test_neither_part_of_the_line_is_ever_negative(times: tuple[float, float]) -> None:
    cost = fitted([(10.0, times[0]), (100.0, times[1])] * 50)
    assert cost.base_ms >= 0
    assert cost.per_token_ms >= 0


@pytest.mark.parametrize("sample", [(0.0, 40.0), (8.0, 0.0), (1e15, 40.0), (8.0, 1e15)])
def test_what_can_not_be_a_pass_is_not_learnt_from(sample: tuple[float, float]) -> None:
    usual = [(8.0, 40.0), (16.0, 44.0)] * 10
    assert fitted([*usual, sample]) == fitted(usual)


def test_the_least_recently_requested_verifier_is_removed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier_cost, "MAX_VERIFIERS", 2)
    lines: PerVerifier[VerifierCostLine] = PerVerifier()
    first, second = (lines.of(name, VerifierCostLine) for name in ("a", "b"))
    assert lines.of("a", VerifierCostLine) is first
    lines.of("c", VerifierCostLine)
    assert lines.of("a", VerifierCostLine) is first
    assert lines.of("b", VerifierCostLine) is not second
