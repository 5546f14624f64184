"""Estimated acceptance: a fading average, and changes that a CUSUM test finds."""

from __future__ import annotations

import numpy as np
import pytest

from awc.estimators.acceptance import AcceptanceEstimate, CusumAcceptance

HALF_LIFE = 192.0
RIGHT_OFTEN, RIGHT_SELDOM, HARDLY_RIGHT = 0.9, 0.5, 0.2


def judged(estimate: AcceptanceEstimate | CusumAcceptance, rate: float, num: int, seed: int) -> list[bool | None]:
    """Guesses that are right with a probability of `rate`, one by one; what each observation says."""
    right = np.random.default_rng(seed).random(num) < rate
    return [estimate.observe(float(each), 1.0) for each in right]


def test_a_judged_guess_weighs_half_after_a_half_life() -> None:
    estimate = AcceptanceEstimate(half_life=8.0)
    assert estimate.rate is None
    estimate.observe(4.0, 4.0)
    estimate.observe(0.0, 8.0)
    assert estimate.rate == pytest.approx(2 / 10)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("before", "after"), [(RIGHT_OFTEN, RIGHT_SELDOM), (RIGHT_SELDOM, RIGHT_OFTEN), (RIGHT_OFTEN, HARDLY_RIGHT)]
)
def test_a_change_is_found_within_a_hundred_guesses_and_earlier_guesses_are_forgotten(
    before: float, after: float, seed: int
) -> None:
    changing, plain = CusumAcceptance(HALF_LIFE), AcceptanceEstimate(HALF_LIFE)
    for estimate in (changing, plain):
        judged(estimate, before, 500, seed)
    found = judged(changing, after, 100, seed + 100)
    judged(plain, after, 100, seed + 100)
    assert True in found
    assert changing.rate is not None
    assert plain.rate is not None
    assert abs(changing.rate - after) < abs(plain.rate - after)


@pytest.mark.parametrize("rate", [RIGHT_OFTEN, RIGHT_SELDOM])
def test_chance_alone_seldom_looks_like_a_change_and_until_one_the_average_is_the_plain_one(rate: float) -> None:
    changing, plain = CusumAcceptance(HALF_LIFE), AcceptanceEstimate(HALF_LIFE)
    found = judged(changing, rate, 20_000, seed=3)
    judged(plain, rate, 20_000, seed=3)
    assert found.count(True) <= 1
    assert changing.rate == pytest.approx(plain.rate, abs=0.01)


def test_assumed_matches_are_no_evidence_of_a_change() -> None:
    estimate = CusumAcceptance(HALF_LIFE)
    judged(estimate, 0.05, 400, seed=1)
    before = estimate.rate
    estimate.assume_matched(20.0)
    assert estimate.observe(1.0, 1.0) is False
    assert before is not None
    assert estimate.rate is not None
    assert before < estimate.rate < 0.3
