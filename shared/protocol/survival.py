"""The probability that a session's next guess is accepted, estimated from earlier comparisons.

Pure: the verifier's state machine and DSD-Sim share it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Survival:
    """Beta estimate of the probability that a session's next guess equals the target's token; old comparisons fade.

    memory: comparisons that the estimate averages over. prior_weight: comparisons that the prior counts for.
    """

    prior: float = 0.7
    prior_weight: float = 4.0
    memory: float = 32.0
    matches: float = 0.0
    comparisons: float = 0.0

    def observe(self, num_matched: int, *, mismatched: bool) -> None:
        """Takes `num_matched` equal guesses in a row, followed by a different one if `mismatched`."""
        num = num_matched + mismatched
        keep = (1 - 1 / self.memory) ** num
        self.matches = self.matches * keep + num_matched
        self.comparisons = self.comparisons * keep + num

    @property
    def probability(self) -> float:
        return (self.matches + self.prior * self.prior_weight) / (self.comparisons + self.prior_weight)
