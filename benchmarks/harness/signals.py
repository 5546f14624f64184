"""Clean exit on SIGTERM."""

from __future__ import annotations

import signal
import sys


def exit_on_sigterm() -> None:
    """Makes SIGTERM raise SystemExit, so that `finally` blocks stop the processes that were started."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
