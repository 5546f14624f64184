"""One window under test: how long a token takes with it, from reports.

Invariant: only reports count that were made with the window in force, of pairs that are being answered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean

from shared.protocol.messages import PairReport

PATIENCE = 20  # reports with another window in force, after which a trial is given up
LEAST_TPOT_MS = 1e-3


@dataclass(slots=True)
class Trial:
    """One window under test: the times per token of `num_wanted` reports with it in force, the first `settling` ones
    left out. Reports of pairs that are not being answered don't count.
    """

    window: int
    settling: int
    num_wanted: int
    num_others: int = 0  # with another window in force
    times: list[float] = field(default_factory=list)  # milliseconds per token, one of each report

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
        """Milliseconds per token, or None when the window never was in force."""
        return max(fmean(self.times), LEAST_TPOT_MS) if self.times else None

    def followed_by(self, window: int, settling: int) -> Trial:
        """The next trial; a window that was in force already needs no settling."""
        is_settled = window == self.window and bool(self.times)
        return Trial(window, 0 if is_settled else settling, self.num_wanted)
