"""How a benchmark is ended from outside."""

from __future__ import annotations

import signal
import sys


def exit_on_sigterm() -> None:
    """SIGTERM is an exit that cleans up, as Ctrl-C is: the processes that were started are stopped."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
