"""How many committed tokens answers to drafts repeat, so that a flood of drafts costs a verifier little."""

from __future__ import annotations

from dataclasses import dataclass

MAX_RETOLD = 512  # tokens at once, and in RETOLD_MS
RETOLD_MS = 20.0  # MIN_TIMEOUT_MS of a drafter, so that an honest one always gets its answer


@dataclass(slots=True)
class Retelling:
    """How many committed tokens a drafter may still be told again. Invariant: 0 <= `left` <= MAX_RETOLD."""

    left: float = MAX_RETOLD
    _at: float = 0.0

    def take(self, wanted: int, now: float) -> int:
        """Takes up to `wanted` tokens; returns their number."""
        self.left = min(MAX_RETOLD, self.left + max(0.0, now - self._at) * MAX_RETOLD / RETOLD_MS)
        self._at = now
        num = min(wanted, int(self.left))
        self.left -= num
        return num
