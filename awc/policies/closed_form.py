"""The closed form: the window with the most tokens per millisecond, if every guess were right with one probability.

With stop-and-wait and independent guesses, right with probability a, a round of window g yields
(1 - a^(g + 1)) / (1 - a) tokens (Leviathan, Kalman, Matias, arXiv 2211.17192, equation 1) and takes the round trip, a
verify pass and g draft steps. All four are measured: a from what was judged, fading; the times are the report's.

At window 0 nothing is judged any more, so the estimate of a rises with every report until drafting is tried again.

Invariant: the choice is `start` with another window, which changes only where the gain is worth it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from awc.estimators.acceptance import Acceptance
from awc.policy import WindowChoice
from shared.protocol.messages import MAX_WINDOW, PairReport

WINDOWS = np.arange(MAX_WINDOW + 1)


@dataclass(frozen=True, slots=True)
class ClosedFormPolicy:
    """Starts with `start`. What was judged fades to half with each `half_life` guesses; another window is chosen when
    it promises `margin` more tokens per millisecond. Raises ValueError for what can't work.
    """

    name: ClassVar[str] = "closed-form"
    start: WindowChoice
    half_life: float = 200.0
    margin: float = 0.02
    hope: float = 4.0  # right guesses that each report counts for while the window is 0 and none is made

    def __post_init__(self) -> None:
        if self.half_life <= 0:
            raise ValueError(f"a half-life of {self.half_life} guesses must be above 0")
        if self.margin < 0 or self.hope < 0:
            raise ValueError(f"margin {self.margin} and hope {self.hope} must be 0 or more")

    def for_pair(self) -> ClosedFormPair:
        return ClosedFormPair(self)


class ClosedFormPair:
    """One pair: what was judged, and the window in force."""

    def __init__(self, policy: ClosedFormPolicy) -> None:
        self._policy = policy
        self._choice = policy.start
        self._acceptance = Acceptance(policy.half_life)

    def decide(self, seen: PairReport) -> WindowChoice:
        self._acceptance.observe(seen.matched, seen.matched + seen.mismatched)
        if self._choice.window == 0 and seen.num_sessions:
            self._acceptance.observe(self._policy.hope, self._policy.hope)
        if self._acceptance.rate is not None and seen.pass_ms:
            rates = speeds(self._acceptance.rate, seen.rtt_ms, seen.pass_ms, seen.draft_ms)
            best = int(np.argmax(rates))
            if rates[best] > (1 + self._policy.margin) * rates[self._choice.window]:
                self._choice = self._policy.start.with_window(best)
        return self._choice


def speeds(acceptance: float, rtt_ms: float, pass_ms: float, draft_ms: float) -> NDArray[np.float64]:
    """Tokens per millisecond in stop-and-wait with each window from 0 to MAX_WINDOW; 0 is target-only serving."""
    tokens = np.cumsum(acceptance ** WINDOWS.astype(np.float64))
    times = np.where(WINDOWS > 0, rtt_ms, 0.0) + pass_ms + draft_ms * WINDOWS
    return tokens / np.maximum(times, 1e-6)
