"""Base of the policies that compute the expected speed of every window and take the best one.

The acceptance is that of judged guesses, fading. At window 0 nothing is judged, so each report adds `assumed_matches`
until drafting is tried again.

Invariant: the choice is `start` with another window, which changes only for a relative gain above `margin`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from awc.estimators.acceptance import AcceptanceEstimate
from awc.policy import WindowChoice
from shared.protocol.messages import PairReport


@dataclass(frozen=True, slots=True)
class BestWindowPolicy:
    """Raises ValueError for bad parameters."""

    start: WindowChoice
    half_life: float = 200.0  # judged guesses after which a guess weighs half
    margin: float = 0.02  # relative gain that another window must promise
    assumed_matches: float = 4.0  # matched guesses that each report adds at window 0

    def __post_init__(self) -> None:
        if not (self.half_life > 0 and self.margin >= 0 and self.assumed_matches >= 0):
            raise ValueError(f"half_life must be above 0, margin and assumed_matches 0 or more, got {self}")


class BestWindowPair:
    """One pair: its acceptance and the choice in force."""

    def __init__(self, policy: BestWindowPolicy) -> None:
        self._policy = policy
        self._choice = policy.start
        self._acceptance = AcceptanceEstimate(policy.half_life)

    def decide(self, seen: PairReport) -> WindowChoice:
        policy, acceptance = self._policy, self._acceptance
        acceptance.observe(seen.matched, seen.matched + seen.mismatched)
        if self._choice.window == 0 and seen.num_sessions:
            acceptance.observe(policy.assumed_matches, policy.assumed_matches)
        speeds = None if acceptance.rate is None else self.speeds(acceptance.rate, seen)
        if speeds is not None:
            best = int(np.argmax(speeds))
            if speeds[best] > (1 + policy.margin) * speeds[self._choice.window]:
                self._choice = policy.start.with_window(best)
        return self._choice

    def speeds(self, acceptance: float, seen: PairReport) -> NDArray[np.float64] | None:
        """Expected tokens per millisecond with each window from 0 to MAX_WINDOW; None while unknown."""
        raise NotImplementedError
