"""Rests where drafting is in vain: guesses that come late, or not at all, take the drafter's time and help nobody.

That is so where the target writes faster than the draft model guesses, for instance with many sessions on one drafter.
While a pair rests its window is 0, which is target-only serving. Nothing is observed meanwhile, so it drafts again from
time to time, each time after a rest twice as long, as Nightjar's bandit (arXiv 2512.22420) comes back to speculation.

Invariant: what the wrapped control sees and decides is what it would see and decide alone between two rests.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from awc.policy import PairControl, WindowChoice, WindowPolicy
from shared.messages import PairReport

RESTING = WindowChoice(window=0, chunk=1, free_run=True)


@dataclass(frozen=True, slots=True)
class Rests:
    """When to rest and for how long, in reports of a pair that has sessions (a drafter makes four in a second).

    Every `look` reports a pair rests when no more than `least_share` of its guesses were of use: right, and in time.
    Raises ValueError for what can't work.
    """

    look: int = 8
    least_share: float = 0.1
    first: int = 20
    longest: int = 640

    def __post_init__(self) -> None:
        if not 0 <= self.least_share < 1:
            raise ValueError(f"least_share {self.least_share} must be 0 or more, and below 1")
        if self.look < 1 or not 1 <= self.first <= self.longest:
            raise ValueError(
                f"look {self.look}, and first {self.first} up to longest {self.longest}, must be 1 or more"
            )


@dataclass(frozen=True, slots=True)
class RestingPolicy:
    """A policy whose pairs rest."""

    active: WindowPolicy
    rests: Rests = field(default_factory=Rests)

    @property
    def name(self) -> str:
        return self.active.name

    def for_pair(self) -> RestingPair:
        return RestingPair(self.active.for_pair(), self.rests)


class RestingPair:
    """One pair under another control, and its rests."""

    def __init__(self, active: PairControl, rests: Rests) -> None:
        self._active = active
        self._rests = rests
        self._length = rests.first  # of the next rest
        self._rest_left = 0
        self._looked = self._drafted = self._useful = 0

    def decide(self, seen: PairReport) -> WindowChoice:
        if self._rest_left and seen.num_sessions:
            self._rest_left -= 1
        if self._rest_left:
            return RESTING
        choice = self._active.decide(seen)
        if seen.num_sessions:
            self._look(seen)
        return RESTING if self._rest_left else choice

    def _look(self, seen: PairReport) -> None:
        self._looked += 1
        self._drafted += seen.drafted
        self._useful += max(0, seen.matched - seen.late)
        if self._looked < self._rests.look:
            return
        if self._useful <= self._rests.least_share * self._drafted:
            self._rest_left = self._length
            self._length = min(2 * self._length, self._rests.longest)
        else:
            self._length = self._rests.first
        self._looked = self._drafted = self._useful = 0
