"""Goodput: the window with the most accepted tokens per millisecond of the whole batch.

After TurboSpec, formerly SmartSpec (Liu et al., arXiv 2406.14066), for a batch of b sessions with the same window g:

    goodput(g) = b * (1 + a + … + a^g) / (rtt [g > 0] + g * draft + base_ms + per_token_ms * b * (g + 1))

a: acceptance (best_window.py has the rest). With a sliding start, tokens per pass are those of the sliding window
(estimators/sliding.py), a pass has as many guesses as come in its time, and there is no round trip.

Two things differ from the source: the verifier's cost line is fitted online (estimators/verifier_cost.py), not profiled
beforehand, and a step has a round trip.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from awc.estimators.acceptance import WINDOWS, tokens_per_round
from awc.estimators.sliding import sliding_guesses, sliding_tokens
from awc.estimators.verifier_cost import PerVerifier, VerifierCostLine
from awc.policies.best_window import BestWindowPair, BestWindowPolicy
from awc.policy import WindowChoice
from shared.protocol.messages import PairReport

HAS_TRIP = (WINDOWS > 0).astype(np.float64)  # window 0 needs no drafter


@dataclass(frozen=True, slots=True)
class GoodputPolicy(BestWindowPolicy):
    """The window with the most goodput (TurboSpec, arXiv 2406.14066). The pairs of a verifier share its cost line."""

    name: ClassVar[str] = "goodput"
    costs: PerVerifier[VerifierCostLine] = field(default_factory=PerVerifier, init=False, repr=False, compare=False)

    def for_pair(self) -> GoodputPair:
        return GoodputPair(self)


class GoodputPair(BestWindowPair):
    def __init__(self, policy: GoodputPolicy) -> None:
        super().__init__(policy)
        self._costs = policy.costs
        self._cost: VerifierCostLine | None = None  # before the first report

    def decide(self, seen: PairReport) -> WindowChoice:
        cost = self._cost = self._cost or self._costs.of(seen.verifier_id, VerifierCostLine)
        cost.observe(seen.pass_tokens, seen.pass_ms)
        return super().decide(seen)

    def speeds(self, acceptance: float, seen: PairReport) -> NDArray[np.float64] | None:
        if not self._cost or not self._cost.is_known:
            return None
        if self._policy.start.is_stop_and_wait:
            return goodputs(acceptance, seen, self._cost)
        return sliding_goodputs(acceptance, seen, self._cost)


def goodputs(acceptance: float, seen: PairReport, cost: VerifierCostLine) -> NDArray[np.float64]:
    """Accepted tokens per millisecond of the reported batch, with each window from 0 to MAX_WINDOW."""
    batch = max(seen.batch, 1.0)
    drafting = seen.rtt_ms * HAS_TRIP + seen.draft_ms * WINDOWS
    passing = cost.base_ms + cost.per_token_ms * batch * (WINDOWS + 1)
    return batch * tokens_per_round(acceptance) / np.maximum(drafting + passing, 1e-6)


def sliding_goodputs(acceptance: float, seen: PairReport, cost: VerifierCostLine) -> NDArray[np.float64]:
    """The same in a sliding window with free run."""
    batch = max(seen.batch, 1.0)
    passing = cost.base_ms + cost.per_token_ms * batch * (sliding_guesses(seen) + 1)
    return batch * sliding_tokens(acceptance, seen) / np.maximum(passing, 1e-6)
