"""A trial of one window: the time per output token while it is in force.

Invariant: only reports made with the window in force, of pairs that receive tokens, count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean

from awc.estimators.features import LEAST_MS
from shared.protocol.messages import PairReport

PATIENCE = 20  # reports with another window in force after which a trial ends


@dataclass(slots=True)
class Trial:
    """The reported time per token over `num_wanted` reports, after `settling` skipped ones."""

    window: int
    settling: int  # reports with the window in force still to skip
    num_wanted: int
    num_others: int = 0  # reports with another window in force
    times: list[float] = field(default_factory=list)  # TPOT of each report that counts, ms

    def observe(self, seen: PairReport) -> None:
        if not seen.num_sessions or not seen.tpot_ms:
            return
        if seen.window != self.window:
            self.num_others += 1
        elif self.settling:
            self.settling -= 1
        else:
            self.times.append(seen.tpot_ms)

    @property
    def is_over(self) -> bool:
        return len(self.times) >= self.num_wanted or self.num_others >= PATIENCE

    @property
    def tpot_ms(self) -> float | None:
        """Mean time per token; None when the window was never in force."""
        return max(fmean(self.times), LEAST_MS) if self.times else None

    def followed_by(self, window: int, settling: int) -> Trial:
        """The next trial. A window that is already in force needs no settling."""
        is_settled = window == self.window and bool(self.times)
        return Trial(window, 0 if is_settled else settling, self.num_wanted)
