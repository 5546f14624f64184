"""How often a draft is right, from what was judged lately.

Invariant: only judged guesses count; what is behind a window, or behind a wrong guess, was not observed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TURN = 3.0
ENOUGH = 10.0  # nats of evidence


class Acceptance:
    """How many guesses were judged and how many of them were right, each guess fading to half with `half_life` more."""

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self.matched = self.judged = 0.0

    def observe(self, num_matched: float, num: float) -> None:
        fading = 0.5 ** (num / self._half_life)
        self.matched = fading * self.matched + num_matched
        self.judged = fading * self.judged + num

    @property
    def rate(self) -> float | None:
        """Right guesses of those judged; None before any was."""
        return self.matched / self.judged if self.judged else None


class TurningAcceptance:
    """The same, of a text that may turn, or a draft that may be changed for another: a cumulative-sum test (Page 1954)
    asks of what was judged whether odds `TURN` times as high, or as low, explain it better than those of the average.
    Once the evidence for that is enough, only what was judged since it began counts."""

    def __init__(self, half_life: float) -> None:
        self.of_all = Acceptance(half_life)
        self._turns = Turn(TURN), Turn(1 / TURN)

    def observe(self, num_matched: float, num: float) -> bool:
        """Whether it has turned, by what is known now."""
        if not num:
            return False
        of_all = self.of_all
        rate = (of_all.matched + 0.5) / (of_all.judged + 1)
        of_all.observe(num_matched, num)
        for turn in self._turns:
            if turn.observe(num_matched, num, rate):
                of_all.matched, of_all.judged = turn.matched, turn.judged
                self._turns = Turn(TURN), Turn(1 / TURN)
                return True
        return False

    def hope(self, num: float) -> None:
        """As if so many had been right, which is no evidence of anything."""
        self.of_all.observe(num, num)

    @property
    def rate(self) -> float | None:
        return self.of_all.rate


@dataclass(slots=True)
class Turn:
    """A rate that may have become one of `odds` times the odds: what speaks for it, and what was judged since."""

    odds: float
    evidence: float = 0.0
    matched: float = 0.0
    judged: float = 0.0

    def observe(self, num_matched: float, num: float, rate: float) -> bool:
        """Whether it has, now."""
        self.evidence += num_matched * math.log(self.odds) - num * math.log(1 + rate * (self.odds - 1))
        if self.evidence <= 0:
            self.evidence = self.matched = self.judged = 0.0
            return False
        self.matched += num_matched
        self.judged += num
        return self.evidence > ENOUGH
