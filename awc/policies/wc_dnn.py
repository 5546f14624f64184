"""The paper's Adaptive Window Control (arXiv 2511.21669): a network that sees five numbers of a pair sets its window.

What it predicts is clamped to 1 to 12 and averaged (weight 0.4 on the new value), the average rounded. A prediction of
1 or less for two decisions in a row means cloud-only, window 0; above 1 for two in a row leads back. The paper gives
neither weights nor width: the network was trained by awc_training (card: awc/policies/wc_dnn.json).

Invariant: the window is 0 or 1 to MAX_PREDICTED, whatever reports say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from awc.estimators.acceptance import Acceptance
from awc.estimators.features import window_inputs
from awc.estimators.network import Network, read_network
from awc.policy import WindowChoice
from shared.protocol.messages import PairReport

WEIGHTS = Path(__file__).with_name("wc_dnn.npz")
MAX_PREDICTED = 12
CLOUD_ONLY = 1.0  # a prediction up to this says so


@lru_cache(maxsize=1)
def shipped_network() -> Network:
    return read_network(WEIGHTS)


@dataclass(frozen=True, slots=True)
class WcDnnPolicy:
    """Starts with `start`, whose scheme stays. What was judged fades to half with each `half_life` guesses."""

    name: ClassVar[str] = "wc-dnn"
    start: WindowChoice
    new_weight: float = 0.4  # of a prediction in the average
    patience: int = 2  # decisions in a row that it takes to change into cloud-only, and back
    half_life: float = 64.0
    network: Network = field(default_factory=shipped_network, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.new_weight <= 1:
            raise ValueError(f"a weight of {self.new_weight} must be above 0, and 1 at most")
        if self.patience < 1 or self.half_life <= 0:
            raise ValueError(f"patience {self.patience} and half-life {self.half_life} must be 1 or more, and above 0")

    def for_pair(self) -> WcDnnPair:
        return WcDnnPair(self)

    def decide_all(self, pairs: Sequence[WcDnnPair], reports: Sequence[PairReport]) -> list[WindowChoice]:
        """The choices of several pairs after a report of each: what `decide` says, for less time a pair."""
        inputs = np.array([pair.observe(report) for pair, report in zip(pairs, reports, strict=True)])
        predicted = self.network.predict(inputs)[:, 0].tolist()
        return [pair.settle(seen, value) for pair, seen, value in zip(pairs, reports, predicted, strict=True)]


class WcDnnPair:
    """One pair: what was judged lately, the average, and how long predictions have spoken for the other mode."""

    def __init__(self, policy: WcDnnPolicy) -> None:
        self._policy = policy
        self._choice = policy.start
        self._average = float(policy.start.window)
        self._num_against = 0
        self._acceptance = Acceptance(policy.half_life)

    def decide(self, seen: PairReport) -> WindowChoice:
        return self._policy.decide_all([self], [seen])[0]

    def observe(self, seen: PairReport) -> list[float]:
        """The network's inputs after one more report."""
        self._acceptance.observe(seen.matched, seen.matched + seen.mismatched)
        acceptance = 1.0 if self._acceptance.rate is None else self._acceptance.rate
        return window_inputs(seen.queue, acceptance, seen.rtt_ms, seen.tpot_ms, max(self._choice.window, 1))

    def settle(self, seen: PairReport, predicted: float) -> WindowChoice:
        """The choice that follows from a prediction; as it was before there is anything to predict from."""
        if seen.tpot_ms == 0 or not math.isfinite(predicted):
            return self._choice
        clamped = min(max(predicted, CLOUD_ONLY), float(MAX_PREDICTED))
        self._average += self._policy.new_weight * (clamped - self._average)
        is_cloud_only = self._choice.window == 0
        self._num_against = self._num_against + 1 if (predicted <= CLOUD_ONLY) != is_cloud_only else 0
        if self._num_against >= self._policy.patience:
            self._num_against, is_cloud_only = 0, not is_cloud_only
        window = 0 if is_cloud_only else max(1, round(self._average))
        if window != self._choice.window:
            self._choice = self._policy.start.with_window(window)
        return self._choice
