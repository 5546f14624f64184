"""Goodput: the window with the most accepted tokens per second of the whole batch.

After SmartSpec, later TurboSpec (Liu et al., arXiv 2406.14066): predict for every window, 0 included, the tokens that a
step yields and the time that it takes, from an acceptance estimated online and a cost line of the target, and take the
argmax. A step of window g yields (1 - a^(g + 1)) / (1 - a) tokens a session and feeds batch * (g + 1) tokens to a pass,
as if the whole batch ran the same window. Two things differ from the source: the cost line is fitted online instead of
profiled beforehand (pass_cost.py), and a step has a round trip, because the drafter is elsewhere.

At window 0 nothing is judged any more, so the estimate of a rises with every report until drafting is tried again.

Invariant: the choice is `start` with another window, which changes only where the gain is worth it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from awc.estimators.acceptance import Acceptance
from awc.estimators.pass_cost import PassCost, PassCosts
from awc.policy import WindowChoice
from shared.protocol.messages import MAX_WINDOW, PairReport

WINDOWS = np.arange(MAX_WINDOW + 1, dtype=np.float64)
HAS_TRIP = (WINDOWS > 0).astype(np.float64)  # the batch alone waits for nobody


@dataclass(frozen=True, slots=True)
class GoodputPolicy:
    """Starts with `start`. What was judged fades to half with each `half_life` guesses; another window is chosen when
    it promises `margin` more goodput. The pairs of one verifier share its cost line. Raises ValueError for what can't
    work.
    """

    name: ClassVar[str] = "goodput"
    start: WindowChoice
    half_life: float = 200.0
    margin: float = 0.02
    hope: float = 4.0  # right guesses that each report counts for while the window is 0 and none is made
    costs: PassCosts = field(default_factory=PassCosts, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.half_life > 0:
            raise ValueError(f"a half-life of {self.half_life} guesses must be above 0")
        if not (self.margin >= 0 and self.hope >= 0):
            raise ValueError(f"margin {self.margin} and hope {self.hope} must be 0 or more")

    def for_pair(self) -> GoodputPair:
        return GoodputPair(self)


class GoodputPair:
    """One pair: what was judged, and the window in force."""

    def __init__(self, policy: GoodputPolicy) -> None:
        self._policy = policy
        self._choice = policy.start
        self._acceptance = Acceptance(policy.half_life)
        self._cost: PassCost | None = None  # before the first report

    def decide(self, seen: PairReport) -> WindowChoice:
        policy, acceptance = self._policy, self._acceptance
        cost = self._cost = self._cost or policy.costs.of(seen.verifier_id)
        cost.observe(seen.pass_tokens, seen.pass_ms)
        acceptance.observe(seen.matched, seen.matched + seen.mismatched)
        if self._choice.window == 0 and seen.num_sessions:
            acceptance.observe(policy.hope, policy.hope)
        if acceptance.rate is not None and cost.is_known:
            promised = goodputs(acceptance.rate, seen, cost)
            best = int(np.argmax(promised))
            if promised[best] > (1 + policy.margin) * promised[self._choice.window]:
                self._choice = policy.start.with_window(best)
        return self._choice


def goodputs(acceptance: float, seen: PairReport, cost: PassCost) -> NDArray[np.float64]:
    """Accepted tokens per millisecond of the batch that was reported, with each window: [MAX_WINDOW + 1]."""
    batch = max(seen.batch, 1.0)
    tokens = np.cumsum(acceptance**WINDOWS)
    drafting = seen.rtt_ms * HAS_TRIP + seen.draft_ms * WINDOWS
    passing = cost.base_ms + cost.per_token_ms * batch * (WINDOWS + 1)
    return batch * tokens / np.maximum(drafting + passing, 1e-6)
