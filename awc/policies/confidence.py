"""The confidence stop: a threshold that adapts until a given share of the guesses is discarded.

A window ends behind a guess that the draft model itself finds less probable than the threshold. SLED (arXiv 2506.09397)
uses a fixed threshold. SpecDec++ (arXiv 2405.19715) proves such a rule optimal, with the probability of a rejection
from a trained head. Draft models are calibrated differently, so here the threshold follows the observed waste:

    threshold += gain * (discarded / (judged + discarded) - discarded_share)     at each sample, clipped to 0…0.9

Discarded guesses follow a mismatch; a higher threshold saves them. First mismatches do not count: the first unsure
guess of a window is made at every threshold.

Invariant: the threshold is a multiple of 1 / STEPS from 0 to MAX_THRESHOLD; the rest of the choice is that of `start`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from awc.policy import WindowChoice
from shared.protocol.messages import PairReport

STEPS = 20  # announced thresholds between 0 and 1
MAX_THRESHOLD = 0.9  # above it nearly every guess ends its window


@dataclass(frozen=True, slots=True)
class ConfidencePolicy:
    """An adaptive confidence threshold (after SLED and SpecDec++) that starts at `start.min_confidence`.

    With a `discarded_share` of 0 the threshold only rises. Raises ValueError for bad parameters.
    """

    name: ClassVar[str] = "confidence"
    start: WindowChoice
    discarded_share: float = 0.2  # wanted share of discarded guesses
    sample_guesses: int = 64  # least guesses of a sample; a report is one sample at most
    gain: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.discarded_share < 1:
            raise ValueError(f"discarded_share must be at least 0 and below 1, got {self.discarded_share}")
        if self.sample_guesses < 1:
            raise ValueError(f"sample_guesses must be 1 or more, got {self.sample_guesses}")
        if not 0 < self.gain <= 1:
            raise ValueError(f"gain must be above 0 and at most 1, got {self.gain}")

    def for_pair(self) -> ConfidencePair:
        return ConfidencePair(self)


class ConfidencePair:
    """One pair and its threshold."""

    def __init__(self, policy: ConfidencePolicy) -> None:
        self._policy = policy
        self._threshold = min(policy.start.min_confidence, MAX_THRESHOLD)  # unrounded
        self._judged = 0  # guesses of the current sample
        self._discarded = 0

    def decide(self, seen: PairReport) -> WindowChoice:
        self._judged += seen.matched + seen.mismatched
        self._discarded += seen.discarded
        if self._judged + self._discarded >= self._policy.sample_guesses:
            self._take_sample()
        return replace(self._policy.start, min_confidence=round(self._threshold * STEPS) / STEPS)

    def _take_sample(self) -> None:
        share = self._discarded / (self._judged + self._discarded)
        self._judged = self._discarded = 0
        moved = self._threshold + self._policy.gain * (share - self._policy.discarded_share)
        self._threshold = min(max(moved, 0.0), MAX_THRESHOLD)
