"""How often a draft is right, from what was judged lately.

Invariant: only judged guesses count; what is behind a window, or behind a wrong guess, was not observed.
"""

from __future__ import annotations

import math

TURN = 3.0
LOG_TURN = math.log(TURN)
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
        self._for_more = self._for_less = 0.0  # evidence
        self._since_more = self._since_less = (0.0, 0.0)  # matched and judged, since it began

    def observe(self, num_matched: float, num: float) -> bool:
        """Whether it has turned, by what is known now."""
        if not num:
            return False
        of_all = self.of_all
        rate = (of_all.matched + 0.5) / (of_all.judged + 1)
        of_all.observe(num_matched, num)
        gained = num_matched * LOG_TURN
        self._for_more += gained - num * math.log(1 + rate * (TURN - 1))
        self._for_less += num * (LOG_TURN - math.log(TURN - rate * (TURN - 1))) - gained
        since = self._since_more
        self._since_more = (since[0] + num_matched, since[1] + num) if self._for_more > 0 else (0.0, 0.0)
        self._for_more = max(self._for_more, 0.0)
        since = self._since_less
        self._since_less = (since[0] + num_matched, since[1] + num) if self._for_less > 0 else (0.0, 0.0)
        self._for_less = max(self._for_less, 0.0)
        if max(self._for_more, self._for_less) <= ENOUGH:
            return False
        of_all.matched, of_all.judged = self._since_more if self._for_more > ENOUGH else self._since_less
        self._for_more = self._for_less = 0.0
        self._since_more = self._since_less = (0.0, 0.0)
        return True

    def hope(self, num: float) -> None:
        """As if so many had been right, which is no evidence of anything."""
        self.of_all.observe(num, num)

    @property
    def rate(self) -> float | None:
        return self.of_all.rate
