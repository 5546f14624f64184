"""Two systems compared on the same prompts in one run: a ratio and its 95 % interval.

Invariant: only figures of the same place are compared with each other, so that what is hard about a prompt, or slow
about the minute in which it ran, falls on both systems alike. Pure: the seed says all.

Figures are arrays [clusters, members] of positive numbers, such as times per token, equal in shape and order for both
systems. What belongs together stands in one cluster (the repeats of one prompt, or the sessions of one round): the
bootstrap draws clusters first and members within each of them, so that members that stray together don't count as
independent.

With few clusters a bootstrap's percentiles lie too close together: of three, an interval would hold the truth three
times in four. They are moved apart as Student's distribution is wider than the normal one (expanded percentiles:
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
Statistic: TypeAlias = Callable[[Figures, Figures], Figures]  # of the last two axes of both

NUM_RESAMPLES = 4000
LOW, HIGH = 0.025, 0.975


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours / theirs, and its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} … {self.high:.3f})"


def geometric_mean_of_ratios(ours: Figures, theirs: Figures) -> Figures:
    """Each pair counts alike, and swapping the systems inverts it."""
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
    """The statistic with its bootstrap interval; raises ValueError for figures that can't be paired."""
    mine, others = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if mine.ndim != 2 or mine.shape != others.shape or not mine.size or len(mine) < 2:
        raise ValueError(
            "figures [clusters, members] of one shape, of two clusters or more, are needed, not "
            f"{mine.shape} and {others.shape}"
        )
    if not (np.isfinite(mine).all() and np.isfinite(others).all() and mine.min() > 0 and others.min() > 0):
        raise ValueError("only positive numbers can be compared by their ratio")
    generator = np.random.default_rng(seed)
    num_clusters, num_members = mine.shape
    clusters = generator.integers(num_clusters, size=(num_resamples, num_clusters, 1))
    members = generator.integers(num_members, size=(num_resamples, num_clusters, num_members))
    value = float(statistic(mine, others))
    ends = np.quantile(statistic(mine[clusters, members], others[clusters, members]), [LOW, HIGH])
    low, high = (value * (float(end) / value) ** expansion(num_clusters) for end in ends)
    return Ratio(value, low, high)


def expansion(num_clusters: int) -> float:
    """How many times as far from the ratio, as logarithms, the ends of an interval are as the percentiles."""
    wider = float(stats.t.ppf(HIGH, num_clusters - 1) / stats.norm.ppf(HIGH))
    return wider * math.sqrt(num_clusters / (num_clusters - 1))
