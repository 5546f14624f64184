"""Nightjar: a contextual bandit over windows, 0 included, that minimises the measured time per token.

After Nightjar (arXiv 2512.22420), whose planner follows ADA-BINGREEDY (Luo et al., arXiv 1708.01799):

1. A bin holds one window for `bin_reports` reports. Its loss is the mean reported time per token.
2. A block of bins explores each arm once in random order, then exploits the best arm. Block lengths double.
3. The context is the batch size: each power of two has its own losses and block (NightjarPlan).
4. Leaving window 0 has a price, the drafter's catch-up time, spread over the bins left in the block.

Two things differ from the source. Blocks stop growing at `longest` bins per arm. Instead of a statistical change test,
old losses fade, and a loss that differs by a factor of CHANGED replaces the old one.

Invariant: a loss of a window comes only from reports with that window in force. Each pair draws its random order from
the same fixed seed, so equal reports give equal choices.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import ClassVar

from awc.estimators.trial import Trial
from awc.policy import WindowChoice
from shared.protocol.messages import MAX_WINDOW, PairReport
from shared.timing import REPORT_S

SEED = 2512
CHANGED = 2.0  # ratio of two losses, either way


@dataclass(frozen=True, slots=True)
class NightjarPolicy:
    """A contextual bandit over windows (Nightjar, arXiv 2512.22420). Raises ValueError for bad parameters."""

    name: ClassVar[str] = "nightjar"
    start: WindowChoice
    arms: tuple[int, ...] = (0, 1, 2, 3, 4, 6, 8, 12)
    bin_reports: int = 4
    settling: int = 2  # skipped reports after a change: decisions take a while, and reported TPOT is a moving average
    longest: int = 16  # bins per arm of a block
    newest: float = 0.25  # weight of the newest bin in the loss of its window
    catch_up: float = 0.25  # time for a drafter to feed one token / draft step

    def __post_init__(self) -> None:
        distinct = len(set(self.arms)) == len(self.arms)
        if not distinct or len(self.arms) < 2 or not all(0 <= arm <= MAX_WINDOW for arm in self.arms):
            raise ValueError(f"arms must be two or more different windows of 0 to {MAX_WINDOW}, got {self.arms}")
        if self.bin_reports < 1 or self.settling < 0 or self.longest < 1:
            raise ValueError(
                f"bin_reports and longest must be 1 or more and settling 0 or more, got {self.bin_reports}, "
                f"{self.longest} and {self.settling}"
            )
        if not (0 < self.newest <= 1 and self.catch_up >= 0):
            raise ValueError(
                f"newest must be above 0 and at most 1, catch_up 0 or more, got {self.newest} and {self.catch_up}"
            )

    def for_pair(self) -> NightjarPair:
        return NightjarPair(self)


class NightjarPair:
    """One pair: the current bin and the plan of each context."""

    def __init__(self, policy: NightjarPolicy) -> None:
        self._policy = policy
        self._random = random.Random(SEED)
        self._plans: dict[int, NightjarPlan] = {}  # by bit length of the batch size
        self._choice = policy.start
        self._trial = Trial(policy.start.window, policy.settling, policy.bin_reports)

    def decide(self, seen: PairReport) -> WindowChoice:
        self._trial.observe(seen)
        if self._trial.is_over:
            self._begin_bin(seen)
        return self._choice

    def _begin_bin(self, seen: PairReport) -> None:
        policy, ended = self._policy, self._trial
        plan = self._plans.setdefault(int(seen.batch).bit_length(), NightjarPlan())
        if ended.tpot_ms is not None:
            plan.learn(ended.window, ended.tpot_ms, policy.newest)
        if not plan.bins_left:
            plan.begin_block(policy, self._random)
        catch_up_ms = policy.catch_up * seen.draft_ms * seen.context
        bin_ms = policy.bin_reports * 1e3 * REPORT_S
        window = plan.next_window(ended.window, price=catch_up_ms / (plan.bins_left * bin_ms))
        self._trial = ended.followed_by(window, policy.settling)
        self._choice = policy.start.with_window(window)


@dataclass(slots=True)
class NightjarPlan:
    """One context: the losses of the windows tried and the rest of the current block."""

    losses: dict[int, float] = field(default_factory=dict)  # milliseconds per token, by window
    unexplored: list[int] = field(default_factory=list)
    bins_left: int = 0
    bins_per_arm: int = 1  # of the next block

    def learn(self, window: int, tpot_ms: float, newest: float) -> None:
        mean = self.losses.get(window, tpot_ms)
        is_similar = mean / CHANGED <= tpot_ms <= mean * CHANGED
        self.losses[window] = mean + newest * (tpot_ms - mean) if is_similar else tpot_ms

    def begin_block(self, policy: NightjarPolicy, order: random.Random) -> None:
        self.unexplored = list(policy.arms)
        order.shuffle(self.unexplored)
        self.bins_left = self.bins_per_arm * len(policy.arms)
        self.bins_per_arm = min(2 * self.bins_per_arm, policy.longest)

    def next_window(self, current: int, price: float) -> int:
        """The window of the next bin. `price`: time to leave window 0 / time until the block ends."""
        self.bins_left -= 1
        if self.unexplored:
            return self.unexplored.pop()
        return min(self.losses, key=lambda w: self.losses[w] * (1 + price * (current == 0 < w)), default=current)
