"""Delay-adaptive speculation: a bandit over windows, none longer than the delay of the pair can make worth it.

After UCB-SpecStop (Sun et al., arXiv 2606.20591): the best stop-and-wait window is finite and grows only with the
logarithm of the delay, so few arms have to be tried; which of them is best is learnt from measured speed. Target-only
serving is not among them. The index is UCB1 with discounted counts (Garivier and Moulines, arXiv
0805.3415), so that old trials fade.

The bound. With independent guesses, right with probability a, a round of window g yields S(g) = 1 + a + ... + a^g
tokens in D + c g milliseconds: D is the round trip and a pass, c a draft step. One more guess than g - 1 pays if

    a^g (D + c (g - 1)) > c S(g - 1) = c (1 - a^g) / (1 - a),

the left side minus the right one falls with g, and so the best window g is the last one for which this holds. Solved
for a^g, with r = D / c and L = ln(1 / a):

    g L < ln(1 + (1 - a) (r + g - 1)).

The logarithm is concave in g and so below each of its tangents. That at g = k, where its argument is y, gives

    g < (ln y - k (1 - a) / y) / (L - (1 - a) / y)   with   y = 1 + (1 - a) (r + k - 1).

1 - a < L and y >= 1 make the denominator positive. With k = 1 and a long delay the bound goes to
ln(1 + (1 - a) r) / ln(1 / a). Taking each bound as the next k tightens it further: that is Newton's method.

Invariant: once something was measured, every window is an arm of 1 or more, and none is above the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from awc.estimators.acceptance import Acceptance
from awc.estimators.trial import Trial
from awc.policy import WindowChoice
from shared.protocol.messages import MAX_WINDOW, PairReport

ARMS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, MAX_WINDOW)  # neighbours are about equally fast
PRIOR, PRIOR_WEIGHT = 0.9, 4.0  # acceptance before anything was judged, and the guesses that it counts for
FORGOTTEN = 0.01  # an arm with less of a trial left counts as untried
HIGHEST = 0.999  # acceptance; closer to 1 the bound is a quotient of differences too small for floats
TANGENTS = 5


@dataclass(frozen=True, slots=True)
class DelayBanditPolicy:
    """Starts with `start`. A trial takes `trial_reports` reports and, where the window is another than before,
    `settling` more, which are not counted; `discount` is what is left of it after the next one. `explore` scales the
    doubt about an arm against its speed, which counts as a share of the fastest one's. What was judged fades to half
    with each `half_life` guesses. Raises ValueError for what can't work.
    """

    name: ClassVar[str] = "delay-ucb"
    start: WindowChoice
    explore: float = 0.1
    discount: float = 0.98
    trial_reports: int = 4
    settling: int = 2
    half_life: float = 200.0

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount {self.discount} must be above 0, and 1 at most")
        if not self.explore >= 0:
            raise ValueError(f"explore {self.explore} must be 0 or more")
        if self.trial_reports < 1 or self.settling < 0:
            raise ValueError(
                f"trial_reports {self.trial_reports} must be 1 or more, and settling {self.settling} 0 or more"
            )
        if not self.half_life > 0:
            raise ValueError(f"a half-life of {self.half_life} guesses must be above 0")

    def for_pair(self) -> DelayBanditPair:
        return DelayBanditPair(self)


@dataclass(slots=True)
class Tried:
    """What is left of an arm's trials: their number and the sum of their speeds, in tokens per millisecond."""

    num: float = 0.0
    speed: float = 0.0

    @property
    def mean(self) -> float:
        return self.speed / self.num


class DelayBanditPair:
    """One pair: the trial under way, and what the windows tried so far were worth."""

    def __init__(self, policy: DelayBanditPolicy) -> None:
        self._policy = policy
        self._choice = policy.start
        self._trial = Trial(policy.start.window, policy.settling, policy.trial_reports)
        self._acceptance = Acceptance(policy.half_life)
        self._tried: dict[int, Tried] = {}

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
        arm = self._tried.setdefault(self._trial.window, Tried())
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
        doubt = math.log1p(sum(self._tried[arm].num for arm in arms))

        def index(arm: int) -> float:
            tried = self._tried[arm]
            return tried.mean / fastest + self._policy.explore * math.sqrt(doubt / tried.num)

        return max(arms, key=index)


def longest_window(acceptance: float, delay_ms: float, draft_ms: float) -> int:
    """1 to MAX_WINDOW: no longer window is the fastest in stop-and-wait (the bound above).

    `delay_ms`: what a round takes beside its draft steps.
    """
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
