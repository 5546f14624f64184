"""How often a draft is right, from what was judged lately.

Invariant: only judged guesses count; what is behind a window, or behind a wrong guess, was not observed.
"""

from __future__ import annotations

import math

TURN = 5.0
LOG_TURN = math.log(TURN)
ENOUGH = 10.0  # nats of evidence


class Acceptance:
    """How many guesses were judged and how many of them were right, each guess fading to half with `half_life` more."""

    __slots__ = ("_half_life", "judged", "matched")

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


class Rise:
    """Evidence that something happens at odds TURN times as high as it used to, and what was seen since that began."""

    __slots__ = ("_evidence", "happened", "num")

    def __init__(self) -> None:
        self._evidence = self.happened = self.num = 0.0

    def observe(self, happened: float, num: float, rate: float) -> bool:
        """Whether the evidence is enough, after it `happened` so often of `num` times; `rate`: what it used to be."""
        evidence = self._evidence + happened * LOG_TURN - num * math.log(1 + rate * (TURN - 1))
        if evidence > 0:
            self._evidence = evidence
            self.happened += happened
            self.num += num
            return evidence > ENOUGH
        self._evidence = self.happened = self.num = 0.0
        return False


class TurningAcceptance:
    """An Acceptance of a text that may turn, or a draft that may be changed for another: a cumulative-sum test (Page
    1954) asks of what was judged whether odds `TURN` times as high, or as low, explain it better than those of the
    average. Once the evidence for that is enough, only what was judged since it began counts."""

    __slots__ = ("_right", "_wrong", "of_all")

    def __init__(self, half_life: float) -> None:
        self.of_all = Acceptance(half_life)
        self._right, self._wrong = Rise(), Rise()

    def observe(self, num_matched: float, num: float) -> bool:
        """Whether it has turned, by what is known now."""
        if not num:
            return False
        of_all, right, wrong = self.of_all, self._right, self._wrong
        rate = (of_all.matched + 0.5) / (of_all.judged + 1)
        of_all.observe(num_matched, num)
        is_better = right.observe(num_matched, num, rate)
        is_worse = wrong.observe(num - num_matched, num, 1 - rate)
        if not (is_better or is_worse):
            return False
        of_all.matched, of_all.judged = (
            (right.happened, right.num) if is_better else (wrong.num - wrong.happened, wrong.num)
        )
        self._right, self._wrong = Rise(), Rise()
        return True

    def hope(self, num: float) -> None:
        """As if so many had been right, which is no evidence of anything."""
        self.of_all.observe(num, num)

    @property
    def rate(self) -> float | None:
        return self.of_all.rate
