"""The closed form: the window with the most tokens per millisecond in stop-and-wait with independent guesses.

    speed(g) = (1 + a + … + a^g) / (rtt + pass + g * draft)     for g > 0 (Leviathan et al., arXiv 2211.17192, eq. 1)
    speed(0) = 1 / pass

a: the fading acceptance of judged guesses; the times are those of the newest report. At window 0 nothing is judged, so
each report adds `assumed_matches` to the estimate of a until drafting is tried again.

Invariant: the choice is `start` with another window, which changes only for a gain above `margin`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from awc.estimators.acceptance import WINDOWS, AcceptanceEstimate, tokens_per_round
from awc.policy import WindowChoice
from shared.protocol.messages import PairReport


@dataclass(frozen=True, slots=True)
class ClosedFormPolicy:
    """The window with the most tokens per millisecond (arXiv 2211.17192). Raises ValueError for bad parameters."""

    name: ClassVar[str] = "closed-form"
    start: WindowChoice
    half_life: float = 200.0  # judged guesses after which a guess weighs half
    margin: float = 0.02  # relative gain that another window must promise
    assumed_matches: float = 4.0  # matched guesses that each report adds at window 0

    def __post_init__(self) -> None:
        if self.half_life <= 0:
            raise ValueError(f"half_life must be above 0, got {self.half_life}")
        if self.margin < 0 or self.assumed_matches < 0:
            raise ValueError(
                f"margin and assumed_matches must be 0 or more, got {self.margin} and {self.assumed_matches}"
            )

    def for_pair(self) -> ClosedFormPair:
        return ClosedFormPair(self)


class ClosedFormPair:
    """One pair: its acceptance and the choice in force."""

    def __init__(self, policy: ClosedFormPolicy) -> None:
        self._policy = policy
        self._choice = policy.start
        self._acceptance = AcceptanceEstimate(policy.half_life)

    def decide(self, seen: PairReport) -> WindowChoice:
        self._acceptance.observe(seen.matched, seen.matched + seen.mismatched)
        if self._choice.window == 0 and seen.num_sessions:
            self._acceptance.observe(self._policy.assumed_matches, self._policy.assumed_matches)
        if self._acceptance.rate is not None and seen.pass_ms:
            rates = speeds(self._acceptance.rate, seen.rtt_ms, seen.pass_ms, seen.draft_ms)
            best = int(np.argmax(rates))
            if rates[best] > (1 + self._policy.margin) * rates[self._choice.window]:
                self._choice = self._policy.start.with_window(best)
        return self._choice


def speeds(acceptance: float, rtt_ms: float, pass_ms: float, draft_ms: float) -> NDArray[np.float64]:
    """Tokens per millisecond with each window from 0 to MAX_WINDOW."""
    times = np.where(WINDOWS > 0, rtt_ms, 0.0) + pass_ms + draft_ms * WINDOWS
    return tokens_per_round(acceptance) / np.maximum(times, 1e-6)
