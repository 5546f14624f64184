"""The paper's Adaptive Window Control (arXiv 2511.21669): a network predicts the window from five inputs of a pair.

1. Clamp the prediction to 1…12.
2. average += new_weight * (prediction - average); the window is the rounded average.
3. `patience` predictions of 1 or less in a row: window 0, target-only. As many above 1 in a row: back to drafting.

The paper gives neither weights nor width. awc_training trained this network (card: awc/policies/wc_dnn.json).

Invariant: the window is 0 to MAX_PREDICTED for every report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from awc.estimators.acceptance import AcceptanceEstimate
from awc.estimators.features import window_inputs
from awc.estimators.network import PolicyNetwork, shipped_network
from awc.policy import WindowChoice
from shared.protocol.messages import PairReport

WEIGHTS = Path(__file__).with_name("wc_dnn.npz")
MAX_PREDICTED = 12
CLOUD_ONLY = 1.0  # predictions up to this mean window 0


@dataclass(frozen=True, slots=True)
class WcDnnPolicy:
    """The paper's learned controller (arXiv 2511.21669). The choice is `start` with another window. Raises ValueError
    for bad parameters."""

    name: ClassVar[str] = "wc-dnn"
    start: WindowChoice
    new_weight: float = 0.4  # of a prediction in the average
    patience: int = 2  # predictions in a row that switch to window 0 or back
    half_life: float = 64.0  # judged guesses after which a guess weighs half
    network: PolicyNetwork = field(default_factory=lambda: shipped_network(WEIGHTS), repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.new_weight <= 1:
            raise ValueError(f"new_weight must be above 0 and at most 1, got {self.new_weight}")
        if self.patience < 1 or self.half_life <= 0:
            raise ValueError(
                f"patience must be 1 or more and half_life above 0, got {self.patience} and {self.half_life}"
            )

    def for_pair(self) -> WcDnnPair:
        return WcDnnPair(self)

    def decide_all(self, pairs: Sequence[WcDnnPair], reports: Sequence[PairReport]) -> list[WindowChoice]:
        """What `decide` says of each pair, with one prediction for all."""
        inputs = np.array([pair.observe(report) for pair, report in zip(pairs, reports, strict=True)])
        predicted = self.network.predict(inputs)[:, 0].tolist()
        return [pair.settle(seen, value) for pair, seen, value in zip(pairs, reports, predicted, strict=True)]


class WcDnnPair:
    """One pair: its acceptance, the averaged prediction, and the predictions in a row for the other mode."""

    def __init__(self, policy: WcDnnPolicy) -> None:
        self._policy = policy
        self._choice = policy.start
        self._average = float(policy.start.window)
        self._num_against = 0
        self._acceptance = AcceptanceEstimate(policy.half_life)

    def decide(self, seen: PairReport) -> WindowChoice:
        return self._policy.decide_all([self], [seen])[0]

    def observe(self, seen: PairReport) -> list[float]:
        """The network's inputs after one more report."""
        self._acceptance.observe(seen.matched, seen.matched + seen.mismatched)
        acceptance = 1.0 if self._acceptance.rate is None else self._acceptance.rate
        return window_inputs(seen.queue, acceptance, seen.rtt_ms, seen.tpot_ms, max(self._choice.window, 1))

    def settle(self, seen: PairReport, predicted: float) -> WindowChoice:
        """The choice after a prediction; unchanged without a time per token."""
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
