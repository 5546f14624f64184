"""How often a draft is right: an average that fades, and a turn of the text that is noticed."""

from __future__ import annotations

import numpy as np
import pytest

from awc.estimators.acceptance import Acceptance, TurningAcceptance

HALF_LIFE = 192.0
RIGHT_OFTEN, RIGHT_SELDOM, HARDLY_RIGHT = 0.9, 0.5, 0.2


def judged(estimate: Acceptance | TurningAcceptance, rate: float, num: int, seed: int) -> list[bool | None]:
    """Guesses that are right with a probability of `rate`, one by one; what each observation says."""
    right = np.random.default_rng(seed).random(num) < rate
    return [estimate.observe(float(each), 1.0) for each in right]


def test_what_was_judged_fades_to_half_with_each_half_life() -> None:
    estimate = Acceptance(half_life=8.0)
    assert estimate.rate is None
    estimate.observe(4.0, 4.0)
    estimate.observe(0.0, 8.0)
    assert estimate.rate == pytest.approx(2 / 10)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("before", "after"), [(RIGHT_OFTEN, RIGHT_SELDOM), (RIGHT_SELDOM, RIGHT_OFTEN), (RIGHT_OFTEN, HARDLY_RIGHT)]
)
def test_a_turn_is_noticed_within_a_hundred_guesses_and_what_was_before_it_is_forgotten(
    before: float, after: float, seed: int
) -> None:
    turning, plain = TurningAcceptance(HALF_LIFE), Acceptance(HALF_LIFE)
    for estimate in (turning, plain):
        judged(estimate, before, 500, seed)
    turned = judged(turning, after, 100, seed + 100)
    judged(plain, after, 100, seed + 100)
    assert True in turned
    assert turning.rate is not None
    assert plain.rate is not None
    assert abs(turning.rate - after) < abs(plain.rate - after)


@pytest.mark.parametrize("rate", [RIGHT_OFTEN, RIGHT_SELDOM])
def test_chance_alone_seldom_looks_like_a_turn_and_the_average_is_the_plain_one_until_then(rate: float) -> None:
    turning, plain = TurningAcceptance(HALF_LIFE), Acceptance(HALF_LIFE)
    turns = judged(turning, rate, 20_000, seed=3)
    judged(plain, rate, 20_000, seed=3)
    assert turns.count(True) <= 1
    assert turning.rate == pytest.approx(plain.rate, abs=0.01)


def test_hope_is_no_evidence_of_a_turn() -> None:
    estimate = TurningAcceptance(HALF_LIFE)
    judged(estimate, 0.05, 400, seed=1)
    before = estimate.rate
    estimate.hope(20.0)
    assert estimate.observe(1.0, 1.0) is False
    assert before is not None
    assert estimate.rate is not None
    assert before < estimate.rate < 0.3
