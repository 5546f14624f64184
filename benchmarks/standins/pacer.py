"""The clock that makes work last as long as hardware that is not here would take for it.

Invariant: a wait ends not before its time, and late by what the system takes to wake a thread at most: it sleeps
nearly to the end and watches the clock for the rest.
"""

from __future__ import annotations

import time

WATCH_S = 0.0002  # of the end of a wait; a sleep may be so late


class Pace:
    """Makes work last as long as a profile says. For one thread, never the event loop's."""

    def __init__(self) -> None:
        self.num_overruns = 0

    def wait(self, started: float, needed_ms: float) -> bool:
        """Returns `needed_ms` behind `started` (time.perf_counter); False, at once, when that is over: an overrun."""
        due = started + needed_ms / 1e3
        left = due - time.perf_counter()
        if left < 0:
            self.num_overruns += 1
            return False
        if left > WATCH_S:
            time.sleep(left - WATCH_S)
        while time.perf_counter() < due:
            time.sleep(0)  # lets the event loop's thread run
        return True
