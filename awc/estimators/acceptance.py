"""Acceptance estimated online: the share of judged guesses that the target agrees with.

Invariant: only judged guesses count. Positions beyond the window and guesses behind a mismatch are unobserved.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from shared.protocol.messages import MAX_WINDOW

ODDS_RATIO = 5.0  # change of the odds that the CUSUM test looks for
LOG_ODDS_RATIO = math.log(ODDS_RATIO)
THRESHOLD = 10.0  # log-likelihood ratio, nats, at which a change is declared
WINDOWS = np.arange(MAX_WINDOW + 1, dtype=np.float64)


def tokens_per_round(acceptance: float) -> NDArray[np.float64]:
    """Expected tokens of a round with each window g = 0…MAX_WINDOW: 1 + a + … + a^g, for independent guesses
    (arXiv 2211.17192, equation 1)."""
    tokens: NDArray[np.float64] = np.cumsum(acceptance**WINDOWS)
    return tokens


class AcceptanceEstimate:
    """Exponentially fading counts of judged and matched guesses; a guess weighs half after `half_life` further ones."""

    __slots__ = ("_half_life", "judged", "matched")

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self.matched = self.judged = 0.0

    def observe(self, num_matched: float, num: float) -> None:
        """Adds `num` judged guesses, `num_matched` of them right."""
        fading = 0.5 ** (num / self._half_life)
        self.matched = fading * self.matched + num_matched
        self.judged = fading * self.judged + num

    @property
    def rate(self) -> float | None:
        """matched / judged; None before the first judged guess."""
        return self.matched / self.judged if self.judged else None


class Cusum:
    """One-sided CUSUM test (Page 1954): have the odds of an event risen by ODDS_RATIO?

    `happened` and `num` count events and trials since the evidence was last 0, the estimated time of the change.
    """

    __slots__ = ("_evidence", "happened", "num")

    def __init__(self) -> None:
        self._evidence = self.happened = self.num = 0.0

    def observe(self, happened: float, num: float, rate: float) -> bool:
        """Whether the change is significant after `happened` more events in `num` trials; `rate`: expected so far."""
        evidence = self._evidence + happened * LOG_ODDS_RATIO - num * math.log(1 + rate * (ODDS_RATIO - 1))
        if evidence > 0:
            self._evidence = evidence
            self.happened += happened
            self.num += num
            return evidence > THRESHOLD
        self._evidence = self.happened = self.num = 0.0
        return False


class CusumAcceptance:
    """An AcceptanceEstimate that notices a change of text or draft model.

    Two CUSUM tests compare judged guesses with the average, one for a rise and one for a fall. After a significant
    change the average restarts from the guesses judged since.
    """

    __slots__ = ("_matches", "_mismatches", "average")

    def __init__(self, half_life: float) -> None:
        self.average = AcceptanceEstimate(half_life)
        self._matches, self._mismatches = Cusum(), Cusum()

    def observe(self, num_matched: float, num: float) -> bool:
        """Adds judged guesses; whether they show a change."""
        if not num:
            return False
        average, matches, mismatches = self.average, self._matches, self._mismatches
        rate = (average.matched + 0.5) / (average.judged + 1)
        average.observe(num_matched, num)
        has_risen = matches.observe(num_matched, num, rate)
        has_fallen = mismatches.observe(num - num_matched, num, 1 - rate)
        if not (has_risen or has_fallen):
            return False
        average.matched, average.judged = (
            (matches.happened, matches.num) if has_risen else (mismatches.num - mismatches.happened, mismatches.num)
        )
        self._matches, self._mismatches = Cusum(), Cusum()
        return True

    def assume_matched(self, num: float) -> None:
        """Adds `num` assumed matches to the average, but not to the tests."""
        self.average.observe(num, num)

    @property
    def rate(self) -> float | None:
        return self.average.rate

    def rate_with(self, prior: float, num: float) -> float:
        """The rate after `num` more guesses of which the share `prior` is right: an estimate before the first one."""
        return (self.average.matched + num * prior) / (self.average.judged + num)
