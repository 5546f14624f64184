"""Makes work last as long as it would on other hardware.

Invariant: a wait never ends early. It ends late by at most the time that the system takes to wake a thread: it sleeps
until shortly before its end and polls the clock from there.
"""

from __future__ import annotations

import time

POLL_S = 0.0002  # the polled end of a wait; a sleep may overrun by this much


class Pacer:
    """Waits for the end of timed work. For one thread, which must not be the event loop's.

    poll_s: 0 lets several threads share a pacer and spares the processor; waits then end as late as sleeps do.
    """

    def __init__(self, poll_s: float = POLL_S) -> None:
        self.num_overruns = 0
        self._poll_s = poll_s

    def wait(self, started: float, needed_ms: float) -> bool:
        """Returns True `needed_ms` after `started` (time.perf_counter), or False at once if that time has passed."""
        due = started + needed_ms / 1e3
        left = due - time.perf_counter()
        if left < 0:
            self.num_overruns += 1
            return False
        if left > self._poll_s:
            time.sleep(left - self._poll_s)
        while time.perf_counter() < due:
            time.sleep(0)  # lets the event loop's thread run
        return True
