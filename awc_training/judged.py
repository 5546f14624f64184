"""What an evaluation shows: how near each policy comes to the oracle, and where it loses.

Invariant: all figures are ratios of scores of the same scenario.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from awc_training.evaluate import Evaluation, Scores

BASE = 4  # the static window that gains are told against, as in the paper
NEARLY = 0.99
LEAST_GAIN = 1.02  # of the oracle: where less can be gained nothing is judged by its share


@dataclass(frozen=True, slots=True)
class Judged:
    """One policy in one transport."""

    name: str
    mean: float  # score, static 4 being 1
    share: float  # of the oracle's gain over static 4, where that is above 2 %
    worst: float  # score, static 4 being 1
    num_below: int  # scenarios with a score below NEARLY that of static 4
    oracle_median: float  # score, the best static window being 1
    oracle_decile: float  # the same, which a tenth of the scenarios stays below


def judged(scores: Scores) -> Iterator[Judged]:
    """Some static windows, then every policy."""
    base, oracle = scores.at(BASE), scores.oracle
    for window in scores.windows:
        yield _judge(f"static {window}", scores.at(window), base, oracle)
    for name, found in scores.policies.items():
        yield _judge(name, np.array(found), base, oracle)
    yield _judge("oracle", oracle, base, oracle)


def _judge(name: str, found: NDArray[np.float64], base: NDArray[np.float64], oracle: NDArray[np.float64]) -> Judged:
    ratio, best = found / base, oracle / base
    can_gain = best > LEAST_GAIN
    share = float((ratio[can_gain] - 1).sum() / (best[can_gain] - 1).sum()) if can_gain.any() else 0.0
    to_oracle = found / oracle
    return Judged(
        name,
        float(ratio.mean()),
        share,
        float(ratio.min()),
        int((ratio < NEARLY).sum()),
        float(np.median(to_oracle)),
        float(np.quantile(to_oracle, 0.1)),
    )


def by_class(evaluation: Evaluation, transport: str, name: str) -> dict[str, dict[str, float]]:
    """The mean ratio of a policy's score to that of each rival and the oracle, in each class of scenarios."""
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
