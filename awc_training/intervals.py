"""Means, medians and ratios with bootstrap intervals.

Invariant: equal values give equal intervals; the resampling has a fixed seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

NUM_RESAMPLES = 4000
SEED = 1979
LEAST = 1e-9  # lower bound of a value whose logarithm is taken


class Interval(Struct, frozen=True):
    """A mean or median with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return self.shown(3)

    def shown(self, digits: int) -> str:
        return f"{self.value:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def geometric_mean(values: Sequence[float]) -> float:
    return float(np.exp(np.log(np.maximum(values, LEAST)).mean()))


def ratio(values: Sequence[float], others: Sequence[float]) -> Interval:
    """The geometric mean of value / other, resampled over the scenarios, or seeds, that both have."""
    logs = np.log(np.maximum(values, LEAST)) - np.log(np.maximum(others, LEAST))
    return _interval(np.exp(logs.mean()), np.exp(logs[_resamples(len(logs))].mean(axis=1)))


def mean(values: Sequence[float]) -> Interval:
    """The mean, resampled over scenarios or seeds."""
    found = np.asarray(values, float)
    return _interval(found.mean(), found[_resamples(len(found))].mean(axis=1))


def median(values: Sequence[float]) -> Interval:
    """The median, resampled over scenarios or seeds."""
    found = np.asarray(values, float)
    return _interval(np.median(found), np.median(found[_resamples(len(found))], axis=1))


def ratio_of_means(values: Sequence[float], others: Sequence[float]) -> Interval:
    """Mean of the values / mean of the others, resampled over the scenarios, or seeds, that both have."""
    above, below = np.asarray(values, float), np.maximum(others, LEAST)
    which = _resamples(len(above))
    return _interval(above.mean() / below.mean(), above[which].mean(axis=1) / below[which].mean(axis=1))


def _resamples(num: int) -> NDArray[np.intp]:
    """Numbers of the drawn values, [resamples, values]."""
    return np.random.default_rng(SEED).choice(num, (NUM_RESAMPLES, num))


def _interval(middle: float, found: Floats) -> Interval:
    low, high = np.quantile(found, (0.025, 0.975))
    return Interval(float(middle), float(low), float(high))
