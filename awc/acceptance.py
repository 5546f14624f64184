"""How often a draft is right, from what was judged lately.

Invariant: only judged guesses count; what is behind a window, or behind a wrong guess, was not observed.
"""

from __future__ import annotations


class Acceptance:
    """How many guesses were judged and how many of them were right, each guess fading to half with `half_life` more."""

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self.matched = self.judged = 0.0

    def observe(self, num_matched: float, num: float) -> None:
        fading = 0.5 ** (num / self._half_life)
        self.matched = fading * self.matched + num_matched
        self.judged = fading * self.judged + num

    @property
    def rate(self) -> float | None:
        """Right guesses of those judged; None before any was."""
        return self.matched / self.judged if self.judged else None
