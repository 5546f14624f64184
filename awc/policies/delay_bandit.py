"""Delay-UCB: a discounted UCB bandit over windows up to a bound that follows from the delay.

After UCB-SpecStop (Sun et al., arXiv 2606.20591). The best stop-and-wait window is finite and grows with the logarithm
of the delay, so few arms need trials. Window 0 is not an arm. The index of an arm is discounted UCB1 (Garivier and
Moulines, arXiv 0805.3415) on measured speed:

    index(arm) = speed(arm) / fastest speed + explore * sqrt(ln(1 + all trials) / trials(arm))

The bound. With independent guesses of acceptance a, a round of window g yields S(g) = 1 + a + … + a^g tokens in
D + c g milliseconds, where D is the round trip plus a pass and c a draft step. Guess number g pays if

    a^g (D + c (g - 1)) > c S(g - 1) = c (1 - a^g) / (1 - a),

Left minus right falls with g, so the best window is the last g for which this holds. With r = D / c and L = ln(1 / a):

    g L < ln(1 + (1 - a) (r + g - 1)).

The logarithm is concave in g, hence below each of its tangents. The tangent at g = k, with argument y, gives

    g < (ln y - k (1 - a) / y) / (L - (1 - a) / y)   with   y = 1 + (1 - a) (r + k - 1).

The denominator is positive because 1 - a < L and y >= 1. With k = 1 and a long delay the bound tends to
ln(1 + (1 - a) r) / ln(1 / a). Newton's method, each bound as the next k, tightens it.

Invariant: after the first trial every window is an arm within the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from awc.estimators.acceptance import AcceptanceEstimate
from awc.estimators.trial import Trial
from awc.policy import WindowChoice
from shared.protocol.messages import MAX_WINDOW, PairReport

ARMS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, MAX_WINDOW)  # neighbours are about equally fast
PRIOR, PRIOR_WEIGHT = 0.9, 4.0  # a-priori acceptance, and its weight in guesses
FORGOTTEN = 0.01  # discounted trials below which an arm counts as untried
HIGHEST = 0.999  # acceptance in the bound; closer to 1 its differences vanish in floats
TANGENTS = 5  # Newton steps


@dataclass(frozen=True, slots=True)
class DelayBanditPolicy:
    """A UCB bandit over windows bounded by the delay (arXiv 2606.20591). Raises ValueError for bad parameters."""

    name: ClassVar[str] = "delay-ucb"
    start: WindowChoice
    explore: float = 0.1  # weight of the uncertainty of an arm
    discount: float = 0.98  # weight left of a trial after the next one
    trial_reports: int = 4
    settling: int = 2  # skipped reports after a change of the window
    half_life: float = 200.0  # judged guesses after which a guess weighs half

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must be above 0 and at most 1, got {self.discount}")
        if not self.explore >= 0:
            raise ValueError(f"explore must be 0 or more, got {self.explore}")
        if self.trial_reports < 1 or self.settling < 0:
            raise ValueError(
                f"trial_reports must be 1 or more and settling 0 or more, got {self.trial_reports} and {self.settling}"
            )
        if not self.half_life > 0:
            raise ValueError(f"half_life must be above 0, got {self.half_life}")

    def for_pair(self) -> DelayBanditPair:
        return DelayBanditPair(self)


@dataclass(slots=True)
class ArmTrials:
    """The discounted trials of one arm."""

    num: float = 0.0
    speed: float = 0.0  # sum over the trials, tokens per millisecond

    @property
    def mean(self) -> float:
        return self.speed / self.num


class DelayBanditPair:
    """One pair: the current trial and the discounted trials of each arm."""

    def __init__(self, policy: DelayBanditPolicy) -> None:
        self._policy = policy
        self._choice = policy.start
        self._trial = Trial(policy.start.window, policy.settling, policy.trial_reports)
        self._acceptance = AcceptanceEstimate(policy.half_life)
        self._tried: dict[int, ArmTrials] = {}

    def decide(self, seen: PairReport) -> WindowChoice:
        self._acceptance.observe(seen.matched, seen.matched + seen.mismatched)
        self._trial.observe(seen)
        if self._trial.is_over:
            self._learn()
            window = self._best(self._arms(seen))
            self._trial = self._trial.followed_by(window, self._policy.settling)
            self._choice = self._policy.start.with_window(window)
        return self._choice

    def _learn(self) -> None:
        tpot_ms = self._trial.tpot_ms
        if tpot_ms is None:
            return
        for tried in self._tried.values():
            tried.num *= self._policy.discount
            tried.speed *= self._policy.discount
        self._tried = {window: tried for window, tried in self._tried.items() if tried.num > FORGOTTEN}
        arm = self._tried.setdefault(self._trial.window, ArmTrials())
        arm.num += 1
        arm.speed += 1 / tpot_ms

    def _arms(self, seen: PairReport) -> Sequence[int]:
        judged, matched = self._acceptance.judged, self._acceptance.matched
        acceptance = (matched + PRIOR * PRIOR_WEIGHT) / (judged + PRIOR_WEIGHT)
        longest = longest_window(acceptance, seen.rtt_ms + seen.pass_ms, seen.draft_ms)
        return [arm for arm in ARMS if arm <= longest]

    def _best(self, arms: Sequence[int]) -> int:
        untried = [arm for arm in arms if arm not in self._tried]
        if untried:
            return untried[0]
        fastest = max(self._tried[arm].mean for arm in arms)
        log_trials = math.log1p(sum(self._tried[arm].num for arm in arms))

        def index(arm: int) -> float:
            tried = self._tried[arm]
            return tried.mean / fastest + self._policy.explore * math.sqrt(log_trials / tried.num)

        return max(arms, key=index)


def longest_window(acceptance: float, delay_ms: float, draft_ms: float) -> int:
    """The bound of this module's docstring, 1 to MAX_WINDOW. `delay_ms`: round trip plus pass."""
    if acceptance <= 0:
        return 1
    if delay_ms >= 1e9 * draft_ms:
        return MAX_WINDOW
    acceptance = min(acceptance, HIGHEST)
    miss, cost, bound = 1 - acceptance, -math.log(acceptance), 1.0
    for _ in range(TANGENTS):
        argument = 1 + miss * (delay_ms / draft_ms + bound - 1)
        slope = miss / argument
        bound = max((math.log(argument) - slope * bound) / (cost - slope), 1.0)
    return int(min(bound, MAX_WINDOW))
