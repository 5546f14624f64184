"""The acceptance ladder: a longer window while guesses match, a shorter one while they do not.

The dampers are those of SGLang's adaptive speculative steps: a moving average, a warm-up, an interval between moves,
and hysteresis. SGLang compares the accepted length of a round with its rungs. A sliding window has no rounds, so the
ladder compares the mean run of matches before a mismatch:

    run = a / (1 - a),     a = moving average of matched / (matched + mismatched)
    climb from rung r      when run > rungs[r] - up_margin
    descend from rung r    when run < down_share * (rungs[r - 1] - up_margin)

The run is a property of the draft: the window does not cut it, and late guesses count as matches.

Invariant: the window is always a rung and moves by at most one rung at a time.
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
    """A ladder of windows with the dampers of SGLang's adaptive speculative steps.

    It starts at the highest rung not above `start.window`; the rest of the choice is that of `start`. Raises ValueError
    for bad parameters.
    """

    name: ClassVar[str] = "ladder"
    start: WindowChoice
    rungs: tuple[int, ...] = (2, 4, 8, 12, 16)
    sample_guesses: int = 16  # least guesses of a sample; a report is one sample at most
    ema_weight: float = 0.2  # of the newest sample
    warm_up: int = 10  # samples before the first move
    interval: int = 5  # samples between two moves
    up_margin: float = 0.5  # tokens
    down_share: float = 0.75

    def __post_init__(self) -> None:
        increasing = all(low < high for low, high in zip(self.rungs, self.rungs[1:], strict=False))
        # At window 0 nothing is observed: wrappers/pausing.py leads there and back.
        if not self.rungs or not increasing or self.rungs[0] < 1 or self.rungs[-1] > MAX_WINDOW:
            raise ValueError(f"rungs must be increasing windows of 1 to {MAX_WINDOW}, got {self.rungs}")
        if self.sample_guesses < 1:
            raise ValueError(f"sample_guesses must be 1 or more, got {self.sample_guesses}")

    def for_pair(self) -> LadderPair:
        return LadderPair(self)

    def climbs_at(self, rung: int) -> float:
        """Run length, in tokens, above which the ladder climbs from rung number `rung`."""
        return self.rungs[rung] - self.up_margin


class LadderPair:
    """One pair on the ladder."""

    def __init__(self, policy: LadderPolicy) -> None:
        self._policy = policy
        self._rung = max(0, bisect_right(policy.rungs, policy.start.window) - 1)
        self._matched = 0  # guesses of the current sample
        self._mismatched = 0
        self._acceptance: float | None = None
        self._samples_left = policy.warm_up

    def decide(self, seen: PairReport) -> WindowChoice:
        self._matched += seen.matched
        self._mismatched += seen.mismatched
        if self._matched + self._mismatched >= self._policy.sample_guesses:
            self._take_sample()
        return self._policy.start.with_window(self._policy.rungs[self._rung])

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
