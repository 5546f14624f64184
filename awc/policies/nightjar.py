"""Nightjar: a bandit that tries windows, 0 included, and learns for each size of batch which one is fastest.

After Nightjar (arXiv 2512.22420), whose planner follows ADA-BINGREEDY (Luo, Wei, Agarwal, Langford, arXiv 1708.01799).
Time goes in bins: one window is held, and its loss is the measured time per token. Bins form blocks of doubling length,
each of which first explores every arm, in random order, and then exploits the best, so that exploration gets rarer.
The context is the batch: each power of two has its own estimates and its own block. Going from 0 back to drafting has a
price, because the drafter must first read what was written meanwhile; the rest of the block has to earn it. Unlike in
the source, blocks stop growing, so that a change is noticed in the end, and instead of a statistical test for changes
old bins fade, at once where a new one differs a lot.

Invariant: what is learnt of a window was reported while it was in force. The random order is drawn from a fixed seed
for each pair, so that equal reports give equal choices.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import ClassVar

from awc.estimators.trial import Trial
from awc.policy import WindowChoice
from shared.protocol.messages import MAX_WINDOW, PairReport

SEED = 2512
REPORT_MS = 250.0  # between two reports
CHANGED = 2.0  # times as much, or as little: what was learnt before is void


@dataclass(frozen=True, slots=True)
class NightjarPolicy:
    """Starts with `start`. A bin takes `bin_reports` reports and, where the window is another than before, `settling`
    more, which are not counted: decisions take a while, and the reported time per token is a moving average. Blocks
    grow to `longest` bins for each arm. Raises ValueError for what can't work.
    """

    name: ClassVar[str] = "nightjar"
    start: WindowChoice
    arms: tuple[int, ...] = (0, 1, 2, 3, 4, 6, 8, 12)
    bin_reports: int = 4
    settling: int = 2
    longest: int = 16
    newest: float = 0.25  # weight of the newest bin in the loss of its window
    catch_up: float = 0.25  # what it takes a drafter to read a token, as a share of a draft step

    def __post_init__(self) -> None:
        distinct = len(set(self.arms)) == len(self.arms)
        if not distinct or len(self.arms) < 2 or not all(0 <= arm <= MAX_WINDOW for arm in self.arms):
            raise ValueError(f"arms {self.arms} must be different windows of 0 to {MAX_WINDOW}, two at least")
        if self.bin_reports < 1 or self.settling < 0 or self.longest < 1:
            raise ValueError(
                f"bin_reports {self.bin_reports} and longest {self.longest} must be 1 or more, "
                f"and settling {self.settling} 0 or more"
            )
        if not (0 < self.newest <= 1 and self.catch_up >= 0):
            raise ValueError(f"newest {self.newest} must be above 0, 1 at most, and catch_up {self.catch_up} 0 or more")

    def for_pair(self) -> NightjarPair:
        return NightjarPair(self)


class NightjarPair:
    """One pair: the bin under way, and the plan of every context met."""

    def __init__(self, policy: NightjarPolicy) -> None:
        self._policy = policy
        self._random = random.Random(SEED)
        self._plans: dict[int, Plan] = {}  # by the bits of the batch: 50 at most
        self._choice = policy.start
        self._trial = Trial(policy.start.window, policy.settling, policy.bin_reports)

    def decide(self, seen: PairReport) -> WindowChoice:
        self._trial.observe(seen)
        if self._trial.is_over:
            self._begin_bin(seen)
        return self._choice

    def _begin_bin(self, seen: PairReport) -> None:
        policy, ended = self._policy, self._trial
        plan = self._plans.setdefault(int(seen.batch).bit_length(), Plan())
        if ended.tpot_ms is not None:
            plan.learn(ended.window, ended.tpot_ms, policy.newest)
        if not plan.bins_left:
            plan.begin_block(policy, self._random)
        catch_up_ms = policy.catch_up * seen.draft_ms * seen.context * seen.num_sessions
        bin_ms = policy.bin_reports * REPORT_MS
        window = plan.next_window(ended.window, price=catch_up_ms / (plan.bins_left * bin_ms))
        self._trial = ended.followed_by(window, policy.settling)
        self._choice = policy.start.with_window(window)


@dataclass(slots=True)
class Plan:
    """One context: milliseconds per token of each window that was in force, and what is left of the block."""

    losses: dict[int, float] = field(default_factory=dict)
    unexplored: list[int] = field(default_factory=list)
    bins_left: int = 0
    bins_per_arm: int = 1  # of the next block

    def learn(self, window: int, tpot_ms: float, newest: float) -> None:
        mean = self.losses.get(window, tpot_ms)
        is_like_before = mean / CHANGED <= tpot_ms <= mean * CHANGED
        self.losses[window] = mean + newest * (tpot_ms - mean) if is_like_before else tpot_ms

    def begin_block(self, policy: NightjarPolicy, order: random.Random) -> None:
        self.unexplored = list(policy.arms)
        order.shuffle(self.unexplored)
        self.bins_left = self.bins_per_arm * len(policy.arms)
        self.bins_per_arm = min(2 * self.bins_per_arm, policy.longest)

    def next_window(self, current: int, price: float) -> int:
        """The window of the next bin. `price`: of leaving 0, as a share of the time until the block ends."""
        self.bins_left -= 1
        if self.unexplored:
            return self.unexplored.pop()
        return min(self.losses, key=lambda w: self.losses[w] * (1 + price * (current == 0 < w)), default=current)
