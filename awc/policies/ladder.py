"""The acceptance ladder: a longer window while the draft is right, a shorter one while it is wrong.

The four dampers are those of SGLang's adaptive speculative steps: a moving average, a warm-up, an interval between
moves and a gap between the way up and the way down. What is compared differs, because a sliding window has no rounds
whose accepted length could be averaged: with acceptance a = matched / (matched + mismatched), a wrong guess comes after
a / (1 - a) right ones on average. This run length is a property of the draft. The window doesn't cut it (guesses
behind the window are unobserved, not rejected), and late guesses count as what they are: right.

Invariant: the window is always a rung, and moves by at most one rung at a time.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import ClassVar

from awc.policy import WindowChoice
from shared.protocol.messages import MAX_WINDOW, PairReport


@dataclass(frozen=True, slots=True)
class LadderPolicy:
    """Starts at the highest rung not above `start.window`; the scheme of the start stays (WindowChoice.with_window).

    A sample is the acceptance of at least `sample_guesses` guesses, and of at least one report. The first move may come
    after `warm_up` samples, the following ones every `interval`. Raises ValueError for what can't work.
    """

    name: ClassVar[str] = "ladder"
    start: WindowChoice
    rungs: tuple[int, ...] = (2, 4, 8, 12, 16)
    sample_guesses: int = 16
    ema_weight: float = 0.2  # of the newest sample
    warm_up: int = 10
    interval: int = 5
    up_margin: float = 0.5  # tokens: climb when the run fills the window but for this much
    down_share: float = 0.75  # go down when the run is under this share of what the climb back would need

    def __post_init__(self) -> None:
        increasing = all(low < high for low, high in zip(self.rungs, self.rungs[1:], strict=False))
        # At window 0 nothing would be observed any more: resting.py sees to that.
        if not self.rungs or not increasing or self.rungs[0] < 1 or self.rungs[-1] > MAX_WINDOW:
            raise ValueError(f"rungs {self.rungs} must be increasing windows of 1 to {MAX_WINDOW}")
        if self.sample_guesses < 1:
            raise ValueError(f"a sample of {self.sample_guesses} guesses shows nothing; it needs at least 1")

    def for_pair(self) -> LadderPair:
        return LadderPair(self)

    def climbs_at(self, rung: int) -> float:
        """The run length, in tokens, above which rung number `rung` is left upwards."""
        return self.rungs[rung] - self.up_margin


class LadderPair:
    """One pair on the ladder."""

    def __init__(self, policy: LadderPolicy) -> None:
        self._policy = policy
        self._rung = max(0, bisect_right(policy.rungs, policy.start.window) - 1)
        self._matched = 0  # of the sample being gathered
        self._mismatched = 0
        self._acceptance: float | None = None
        self._samples_left = policy.warm_up

    def decide(self, seen: PairReport) -> WindowChoice:
        self._matched += seen.matched
        self._mismatched += seen.mismatched
        if self._matched + self._mismatched >= self._policy.sample_guesses:
            self._take_sample()
        return self._choice()

    def _take_sample(self) -> None:
        sample = self._matched / (self._matched + self._mismatched)
        self._matched = self._mismatched = 0
        if self._acceptance is None:
            self._acceptance = sample
        else:
            self._acceptance += self._policy.ema_weight * (sample - self._acceptance)
        self._samples_left -= 1
        if self._samples_left <= 0:
            self._samples_left = self._policy.interval
            self._move(run=self._acceptance / (1 - self._acceptance) if self._acceptance < 1 else math.inf)

    def _move(self, run: float) -> None:
        policy, rung = self._policy, self._rung
        if rung + 1 < len(policy.rungs) and run > policy.climbs_at(rung):
            self._rung = rung + 1
        elif rung > 0 and run < policy.down_share * policy.climbs_at(rung - 1):
            self._rung = rung - 1

    def _choice(self) -> WindowChoice:
        return self._policy.start.with_window(self._policy.rungs[self._rung])
