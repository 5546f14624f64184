"""The confidence stop with a threshold that follows from what the pair shows.

A window ends early behind a guess whose probability under the draft is below a threshold, as edge devices do in SLED
(arXiv 2506.09397) with a fixed one. SpecDec++ (arXiv 2405.19715) proves such a rule optimal, with a threshold that
depends on the costs of drafting and of verifying; its probability of a rejection comes from a trained head, here it is
the draft's own. What a fixed number means differs from draft to draft, as their probabilities are calibrated
differently. So the threshold is moved until a given share of the guesses is discarded: those are the guesses behind a
wrong one, which no threshold could have made useful and a high enough one would have spared. First mismatches are left
out: at any threshold the first unsure guess of a window is made.

Invariant: the threshold is a multiple of 1 / STEPS from 0 to MAX_THRESHOLD, and the rest of the choice is the start's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from awc.policy import WindowChoice
from shared.protocol.messages import PairReport

STEPS = 20  # from 0 to 1; smaller differences are not worth a decision
MAX_THRESHOLD = 0.9  # above, nearly every guess would be the last of its window


@dataclass(frozen=True, slots=True)
class ConfidencePolicy:
    """Starts at `start.min_confidence`, and moves by `gain` times the distance from `discarded_share` at each sample.

    A sample is the share of at least `sample_guesses` guesses, and of at least one report, whatever its counts. With a
    share of 0 wanted the threshold only rises. Raises ValueError for what can't work.
    """

    name: ClassVar[str] = "confidence"
    start: WindowChoice
    discarded_share: float = 0.2
    sample_guesses: int = 64
    gain: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.discarded_share < 1:
            raise ValueError(f"a share of {self.discarded_share} discarded guesses must be 0 or more, and below 1")
        if self.sample_guesses < 1:
            raise ValueError(f"a sample of {self.sample_guesses} guesses shows nothing; it needs at least 1")
        if not 0 < self.gain <= 1:
            raise ValueError(f"gain {self.gain} must be above 0, and 1 at most")

    def for_pair(self) -> ConfidencePair:
        return ConfidencePair(self)


class ConfidencePair:
    """One pair and its threshold."""

    def __init__(self, policy: ConfidencePolicy) -> None:
        self._policy = policy
        self._threshold = min(policy.start.min_confidence, MAX_THRESHOLD)  # before it is rounded
        self._kept = 0  # of the sample being gathered: guesses that were judged
        self._discarded = 0

    def decide(self, seen: PairReport) -> WindowChoice:
        self._kept += seen.matched + seen.mismatched
        self._discarded += seen.discarded
        if self._kept + self._discarded >= self._policy.sample_guesses:
            self._take_sample()
        return replace(self._policy.start, min_confidence=round(self._threshold * STEPS) / STEPS)

    def _take_sample(self) -> None:
        share = self._discarded / (self._kept + self._discarded)
        self._kept = self._discarded = 0
        moved = self._threshold + self._policy.gain * (share - self._policy.discarded_share)
        self._threshold = min(max(moved, 0.0), MAX_THRESHOLD)
