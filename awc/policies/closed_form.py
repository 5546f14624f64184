"""The closed form: the window with the most tokens per millisecond with independent guesses.

In stop-and-wait (Leviathan et al., arXiv 2211.17192, equation 1):

    speed(g) = (1 + a + … + a^g) / (rtt + pass + g * draft)     for g > 0
    speed(0) = 1 / pass

With a sliding start the form is that of the sliding window (estimators/sliding.py).

a: acceptance; the times are those of the newest report (best_window.py has the rest).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from awc.estimators.acceptance import WINDOWS, tokens_per_round
from awc.estimators.sliding import sliding_tokens
from awc.policies.best_window import BestWindowPair, BestWindowPolicy
from shared.protocol.messages import PairReport


@dataclass(frozen=True, slots=True)
class ClosedFormPolicy(BestWindowPolicy):
    """The window with the most tokens per millisecond (arXiv 2211.17192)."""

    name: ClassVar[str] = "closed-form"

    def for_pair(self) -> ClosedFormPair:
        return ClosedFormPair(self)


class ClosedFormPair(BestWindowPair):
    def speeds(self, acceptance: float, seen: PairReport) -> NDArray[np.float64] | None:
        if not seen.pass_ms:
            return None
        if self._policy.start.is_stop_and_wait:
            return speeds(acceptance, seen.rtt_ms, seen.pass_ms, seen.draft_ms)
        return sliding_tokens(acceptance, seen)


def speeds(acceptance: float, rtt_ms: float, pass_ms: float, draft_ms: float) -> NDArray[np.float64]:
    """Tokens per millisecond with each window from 0 to MAX_WINDOW."""
    times = np.where(WINDOWS > 0, rtt_ms, 0.0) + pass_ms + draft_ms * WINDOWS
    return tokens_per_round(acceptance) / np.maximum(times, 1e-6)
