"""What both state machines of the protocol need for guesses: epochs, fates and comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading elements are equal."""
    length = min(len(left), len(right))
    return next((i for i in range(length) if left[i] != right[i]), length)
