"""How many reports of a drafter's name count, so that its holder neither fills the queue of reports nor outweighs the
other drafters of a verifier.

Invariant: a name has BURST reports at once, and PER_S for each of its instances in the long run. Names with a full
allowance take no memory. Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.timing import REPORT_S

BURST = 64.0
PER_S = 8 / REPORT_S  # an honest drafter with the shortest DSD_REPORT_S stays below it


@dataclass(slots=True)
class Allowance:
    """Reports that a name may still send at `at`."""

    left: float
    at: float


class ReportLimits:
    """The allowances of all names."""

    def __init__(self, instances_per_name: int) -> None:
        self._per_s = PER_S * instances_per_name
        self._used: dict[str, Allowance] = {}

    def take(self, name: str, now: float) -> bool:
        """Whether one more report of the name counts."""
        used = self._used.setdefault(name, Allowance(BURST, now))
        used.left, used.at = self._left(used, now), now
        if used.left < 1:
            return False
        used.left -= 1
        return True

    def expire(self, now: float) -> None:
        """Forgets the names whose allowance is full again."""
        self._used = {name: used for name, used in self._used.items() if self._left(used, now) < BURST}

    def _left(self, used: Allowance, now: float) -> float:
        return min(BURST, used.left + (now - used.at) * self._per_s)
