"""Paired comparison of two systems on the same prompts in one run: a ratio and its 95 % bootstrap interval.

Invariant: each figure is compared only with the figure at the same index, so a hard prompt or a slow minute affects
both systems alike. Pure: the seed determines the result.

Figures are arrays [clusters, members] of positive numbers, such as times per token, with the same shape and order for
both systems. A cluster holds correlated figures: the repeats of one prompt, or the sessions of one round. The bootstrap
draws clusters first and members within each of them, so correlated members do not count as independent.

With few clusters the percentiles of a bootstrap lie too close together: with three, an interval holds the truth three
times in four. They are moved apart by the ratio of Student's distribution to the normal one (expanded percentiles:
Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Figures: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Figures, Figures], Figures]  # reduces the last two axes of both

NUM_RESAMPLES = 4000
LOW, HIGH = 0.025, 0.975


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours / theirs, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} … {self.high:.3f})"


def geometric_mean_of_ratios(ours: Figures, theirs: Figures) -> Figures:
    """Weights all pairs equally. Swapping the systems inverts it."""
    return np.asarray(np.exp(np.mean(np.log(ours / theirs), axis=(-2, -1))))


def median_of_ratios(ours: Figures, theirs: Figures) -> Figures:
    return np.asarray(np.median(ours / theirs, axis=(-2, -1)))


def ratio_of_medians(ours: Figures, theirs: Figures) -> Figures:
    return np.asarray(np.median(ours, axis=(-2, -1)) / np.median(theirs, axis=(-2, -1)))


def compare(
    ours: ArrayLike,
    theirs: ArrayLike,
    statistic: Statistic = geometric_mean_of_ratios,
    *,
    seed: int = 1,
    num_resamples: int = NUM_RESAMPLES,
) -> Ratio:
    """The statistic with its bootstrap interval. Raises ValueError for figures that cannot be paired."""
    mine, others = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if mine.ndim != 2 or mine.shape != others.shape or not mine.size or len(mine) < 2:
        raise ValueError(
            "figures must have the same shape [clusters, members] with 2 clusters or more, "
            f"got {mine.shape} and {others.shape}"
        )
    if not (np.isfinite(mine).all() and np.isfinite(others).all() and mine.min() > 0 and others.min() > 0):
        raise ValueError("figures must be finite and positive")
    generator = np.random.default_rng(seed)
    num_clusters, num_members = mine.shape
    clusters = generator.integers(num_clusters, size=(num_resamples, num_clusters, 1))
    members = generator.integers(num_members, size=(num_resamples, num_clusters, num_members))
    value = float(statistic(mine, others))
    ends = np.quantile(statistic(mine[clusters, members], others[clusters, members]), [LOW, HIGH])
    low, high = (value * (float(end) / value) ** expansion(num_clusters) for end in ends)
    return Ratio(value, low, high)


def expansion(num_clusters: int) -> float:
    """Factor by which log(end / ratio) of an interval exceeds log(percentile / ratio)."""
    wider = float(stats.t.ppf(HIGH, num_clusters - 1) / stats.norm.ppf(HIGH))
    return wider * math.sqrt(num_clusters / (num_clusters - 1))
