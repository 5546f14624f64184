"""Goodput: the window with the most accepted tokens per millisecond of the whole batch.

After TurboSpec, formerly SmartSpec (Liu et al., arXiv 2406.14066), for a batch of b sessions with the same window g:

    goodput(g) = b * (1 + a + … + a^g) / (rtt [g > 0] + g * draft + base_ms + per_token_ms * b * (g + 1))

a: the fading acceptance of judged guesses. Two things differ from the source: the verifier's cost line is fitted online
(estimators/verifier_cost.py), not profiled beforehand, and a step has a round trip. At window 0 nothing is judged, so
each report adds `assumed_matches` to the estimate of a until drafting is tried again.

Invariant: the choice is `start` with another window, which changes only for a gain above `margin`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from awc.estimators.acceptance import WINDOWS, AcceptanceEstimate, tokens_per_round
from awc.estimators.verifier_cost import PerVerifier, VerifierCostLine
from awc.policy import WindowChoice
from shared.protocol.messages import PairReport

HAS_TRIP = (WINDOWS > 0).astype(np.float64)  # window 0 needs no drafter


@dataclass(frozen=True, slots=True)
class GoodputPolicy:
    """The window with the most goodput (TurboSpec, arXiv 2406.14066). The pairs of a verifier share its cost line.
    Raises ValueError for bad parameters."""

    name: ClassVar[str] = "goodput"
    start: WindowChoice
    half_life: float = 200.0  # judged guesses after which a guess weighs half
    margin: float = 0.02  # relative gain that another window must promise
    assumed_matches: float = 4.0  # matched guesses that each report adds at window 0
    costs: PerVerifier[VerifierCostLine] = field(default_factory=PerVerifier, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.half_life > 0:
            raise ValueError(f"half_life must be above 0, got {self.half_life}")
        if not (self.margin >= 0 and self.assumed_matches >= 0):
            raise ValueError(
                f"margin and assumed_matches must be 0 or more, got {self.margin} and {self.assumed_matches}"
            )

    def for_pair(self) -> GoodputPair:
        return GoodputPair(self)


class GoodputPair:
    """One pair: its acceptance and the choice in force."""

    def __init__(self, policy: GoodputPolicy) -> None:
        self._policy = policy
        self._choice = policy.start
        self._acceptance = AcceptanceEstimate(policy.half_life)
        self._cost: VerifierCostLine | None = None  # before the first report

    def decide(self, seen: PairReport) -> WindowChoice:
        policy, acceptance = self._policy, self._acceptance
        cost = self._cost = self._cost or policy.costs.of(seen.verifier_id, VerifierCostLine)
        cost.observe(seen.pass_tokens, seen.pass_ms)
        acceptance.observe(seen.matched, seen.matched + seen.mismatched)
        if self._choice.window == 0 and seen.num_sessions:
            acceptance.observe(policy.assumed_matches, policy.assumed_matches)
        if acceptance.rate is not None and cost.is_known:
            expected = goodputs(acceptance.rate, seen, cost)
            best = int(np.argmax(expected))
            if expected[best] > (1 + policy.margin) * expected[self._choice.window]:
                self._choice = policy.start.with_window(best)
        return self._choice


def goodputs(acceptance: float, seen: PairReport, cost: VerifierCostLine) -> NDArray[np.float64]:
    """Accepted tokens per millisecond of the reported batch, with each window from 0 to MAX_WINDOW."""
    batch = max(seen.batch, 1.0)
    drafting = seen.rtt_ms * HAS_TRIP + seen.draft_ms * WINDOWS
    passing = cost.base_ms + cost.per_token_ms * batch * (WINDOWS + 1)
    return batch * tokens_per_round(acceptance) / np.maximum(drafting + passing, 1e-6)
