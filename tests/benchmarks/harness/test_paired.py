"""Paired comparisons find real differences, and their intervals have the stated coverage."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.harness.paired import (
    Figures,
    Statistic,
    compare,
    geometric_mean_of_ratios,
    median_of_ratios,
    ratio_of_medians,
)

STATISTICS = [geometric_mean_of_ratios, median_of_ratios, ratio_of_medians]


def run_of(speedup: float, seed: int, num_prompts: int = 20, num_repeats: int = 2) -> tuple[Figures, Figures]:
    """Times of two systems on prompts that differ a lot, each measured with 10 % noise."""
    generator = np.random.default_rng(seed)
    hard = np.exp(generator.normal(0, 1, (num_prompts, 1)))
    ours, theirs = (hard * np.exp(generator.normal(0, 0.1, (num_prompts, num_repeats))) for _ in range(2))
    return ours, theirs / speedup


def test_equal_systems_have_ratio_one_and_an_empty_interval() -> None:
    ours, _ = run_of(1, seed=1)
    for statistic in STATISTICS:
        ratio = compare(ours, ours, statistic)
        assert ratio.value == 1
        if statistic is not ratio_of_medians:
            assert ratio.low == ratio.high == 1


def test_known_figures_give_known_ratios() -> None:
    ours, theirs = [[2.0, 8.0], [3.0, 9.0]], [[1.0, 2.0], [3.0, 3.0]]  # ratios 2, 4, 1, 3
    assert compare(ours, theirs).value == pytest.approx(24 ** (1 / 4))
    assert compare(ours, theirs, median_of_ratios).value == pytest.approx(2.5)
    assert compare(ours, theirs, ratio_of_medians).value == pytest.approx(5.5 / 2.5)


def test_swapping_the_systems_inverts_the_geometric_mean_and_its_interval() -> None:
    ours, theirs = run_of(1.3, seed=2)
    there, back = compare(ours, theirs), compare(theirs, ours)
    assert there.value * back.value == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1, abs=1e-3)


def test_pairing_sees_a_small_difference_among_prompts_that_differ_widely() -> None:
    ratio = compare(*run_of(1.2, seed=3))
    assert ratio.low > 1.1
    assert 1.15 < ratio.value < 1.25


@pytest.mark.parametrize("statistic", [geometric_mean_of_ratios, median_of_ratios])
@pytest.mark.parametrize(("num_prompts", "num_repeats"), [(3, 1), (5, 1), (20, 2)])
def test_the_interval_has_about_the_stated_coverage(statistic: Statistic, num_prompts: int, num_repeats: int) -> None:
    pairs = [run_of(1.25, seed, num_prompts, num_repeats) for seed in range(300)]
    runs = [compare(*pair, statistic, seed=seed, num_resamples=400) for seed, pair in enumerate(pairs)]
    assert 0.9 < np.mean([ratio.low <= 1.25 <= ratio.high for ratio in runs]) <= 0.99


def test_correlated_members_widen_the_interval() -> None:
    generator = np.random.default_rng(4)
    together = np.exp(generator.normal(0, 0.2, (10, 1))) * np.ones((10, 8))
    apart = np.exp(generator.normal(0, 0.2, (10, 8)))
    wide, narrow = compare(together, np.ones((10, 8))), compare(apart, np.ones((10, 8)))
    assert wide.high - wide.low > 1.8 * (narrow.high - narrow.low)


def test_the_same_seed_gives_the_same_interval() -> None:
    ours, theirs = run_of(1.1, seed=5)
    assert compare(ours, theirs, seed=7) == compare(ours, theirs, seed=7) != compare(ours, theirs, seed=8)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([[1.0], [1.0]], [[1.0, 2.0], [1.0, 2.0]]),
        ([[1.0, 2.0]], [[1.0, 2.0]]),
        ([1.0, 1.0], [1.0, 1.0]),
        ([[], []], [[], []]),
        ([[0.0], [1.0]], [[1.0], [1.0]]),
        ([[1.0], [1.0]], [[float("nan")], [1.0]]),
    ],
)
def test_figures_that_cannot_be_paired_are_refused(ours: list[list[float]], theirs: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"figures|positive"):
        compare(ours, theirs)
