"""Means of ratios with bootstrap intervals.

Invariant: equal values give equal intervals; the resampling has a fixed seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

NUM_RESAMPLES = 4000
SEED = 1979
LEAST = 1e-9  # lower bound of a value whose logarithm is taken


class Interval(Struct, frozen=True):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f}–{self.high:.3f})"


def geometric_mean(values: Sequence[float]) -> float:
    return float(np.exp(np.log(np.maximum(values, LEAST)).mean()))


def ratio(values: Sequence[float], others: Sequence[float]) -> Interval:
    """The geometric mean of value / other, resampled over the scenarios, or seeds, that both have."""
    logs = np.log(np.maximum(values, LEAST)) - np.log(np.maximum(others, LEAST))
    rng = np.random.default_rng(SEED)
    means = rng.choice(logs, (NUM_RESAMPLES, len(logs))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(*(float(np.exp(each)) for each in (logs.mean(), low, high)))
