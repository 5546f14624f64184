"""Guesses as both state machines of the protocol and DSD-Sim see them: fates, comparison, survival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

MAX_EPOCH = 1 << 48


@dataclass(slots=True)
class Fates:
    """Guesses by their fate (docs/glossary.md)."""

    accepted: int = 0
    rejected: int = 0
    late: int = 0
    discarded: int = 0

    @property
    def total(self) -> int:
        return self.accepted + self.rejected + self.late + self.discarded


FATES = tuple(field.name for field in fields(Fates))


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading elements are equal."""
    length = min(len(left), len(right))
    return next((i for i in range(length) if left[i] != right[i]), length)


@dataclass(slots=True)
class Survival:
    """Beta estimate of the probability that a session's next guess equals the target's token; old comparisons fade.

    It counts only guesses that arrived before their token was committed: a later one may repeat a verdict.

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
