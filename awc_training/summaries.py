"""Summaries of an evaluation: how near each policy comes to the oracle, and where it loses.

Invariant: every figure is a ratio of two scores of one scenario.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from awc_training.evaluate import Evaluation, Scores

BASE = 4  # the static window that gains are relative to, as in the paper
NEARLY = 0.99
LEAST_GAIN = 1.02  # least gain of the oracle in a scenario that counts for `share`


@dataclass(frozen=True, slots=True)
class PolicySummary:
    """One policy in one transport; scores are relative to window BASE, `oracle_…` to the best static window."""

    name: str
    mean: float  # score
    share: float  # gain / gain of the oracle, over the scenarios where that is above LEAST_GAIN
    worst: float  # lowest score
    num_below: int  # scenarios with a score below NEARLY
    oracle_median: float
    oracle_decile: float  # 10th percentile


def summaries(scores: Scores) -> Iterator[PolicySummary]:
    """Every static window, every policy, then the oracle."""
    base, oracle = scores.at(BASE), scores.oracle
    for window in scores.windows:
        yield _summary(f"static {window}", scores.at(window), base, oracle)
    for name, found in scores.policies.items():
        yield _summary(name, np.array(found), base, oracle)
    yield _summary("oracle", oracle, base, oracle)


def _summary(
    name: str, found: NDArray[np.float64], base: NDArray[np.float64], oracle: NDArray[np.float64]
) -> PolicySummary:
    ratio, best = found / base, oracle / base
    can_gain = best > LEAST_GAIN
    share = float((ratio[can_gain] - 1).sum() / (best[can_gain] - 1).sum()) if can_gain.any() else 0.0
    to_oracle = found / oracle
    median, decile = float(np.median(to_oracle)), float(np.quantile(to_oracle, 0.1))
    num_below = int((ratio < NEARLY).sum())
    return PolicySummary(name, float(ratio.mean()), share, float(ratio.min()), num_below, median, decile)


def by_class(evaluation: Evaluation, transport: str, name: str) -> dict[str, dict[str, float]]:
    """Mean ratio of a policy's score to that of each rival, by class of scenarios and rival."""
    scores = evaluation.transports[transport]
    ours = np.array(scores.policies[name])
    rivals = {rival: np.array(found) for rival, found in scores.policies.items() if rival != name}
    rivals |= {f"static {window}": scores.at(window) for window in scores.windows if window}
    classes = sorted({each for found in evaluation.classes for each in found})
    table = {}
    for each in classes:
        chosen = np.array([each in found for found in evaluation.classes])
        table[each] = {rival: float((ours[chosen] / found[chosen]).mean()) for rival, found in rivals.items()}
    return table
