"""What becomes of each drafter's guesses in this gateway's sessions, as their verifiers tell it.

Invariant: a drafter's own words do not enter. Older guesses count less. At most MAX_DRAFTERS are kept; the one whose
guesses are the oldest goes first. No clock: every call gets `now` in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from shared.protocol.guesses import Fates
from shared.protocol.messages import Tally

MAX_DRAFTERS = 4096
FADE_S = 30.0  # after which a guess counts 1/e
MIN_SPAN_S = 1.0  # that the first guesses are spread over


@dataclass(frozen=True, slots=True)
class GuessQuality:
    """Of a drafter's guesses lately. acceptance: of those judged; in_time: of the right ones, those accepted.

    None: there were hardly any.
    """

    per_s: float = 0.0
    acceptance: float | None = None
    in_time: float | None = None


@dataclass(slots=True)
class FadingFates:
    """Counts of fates in which a guess counts e^(-age / FADE_S)."""

    since: float
    at: float = field(init=False)
    accepted: float = 0.0
    rejected: float = 0.0
    late: float = 0.0
    discarded: float = 0.0

    def __post_init__(self) -> None:
        self.at = self.since

    def add(self, fates: Fates, now: float) -> None:
        keep = self._keep(now)
        self.accepted = self.accepted * keep + fates.accepted
        self.rejected = self.rejected * keep + fates.rejected
        self.late = self.late * keep + fates.late
        self.discarded = self.discarded * keep + fates.discarded
        self.at = now

    def quality(self, now: float) -> GuessQuality:
        keep, right = self._keep(now), self.accepted + self.late
        judged = right + self.rejected
        span_s = FADE_S * -math.expm1(-max(now - self.since, MIN_SPAN_S) / FADE_S)
        return GuessQuality(
            (judged + self.discarded) * keep / span_s,
            right / judged if judged * keep >= 1 else None,
            self.accepted / right if right * keep >= 1 else None,
        )

    def _keep(self, now: float) -> float:
        return math.exp(min(0.0, self.at - now) / FADE_S)


class DrafterGuesses:
    """The fates of the guesses of all drafters, by instance id."""

    def __init__(self) -> None:
        self._drafters: dict[str, FadingFates] = {}  # the newest guesses last

    def observe(self, drafter_id: str, fates: Fates, now: float) -> None:
        """Takes the fates of further guesses."""
        counts = self._drafters.pop(drafter_id, None) or FadingFates(now)
        counts.add(fates, now)
        self._drafters[drafter_id] = counts
        if len(self._drafters) > MAX_DRAFTERS:
            del self._drafters[next(iter(self._drafters))]

    def quality(self, drafter_id: str, now: float) -> GuessQuality:
        counts = self._drafters.get(drafter_id)
        return counts.quality(now) if counts else GuessQuality()


def further(tally: Tally, before: Tally) -> Fates:
    """The guesses that a newer tally of a verifier counts beyond an older one."""
    return Fates(
        max(0, tally.accepted - before.accepted),
        max(0, tally.rejected - before.rejected),
        max(0, tally.late - before.late),
        max(0, tally.discarded - before.discarded),
    )
