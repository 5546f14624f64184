"""Runs a program and its threads on one core: python -m benchmarks.harness.pinned CORE PROGRAM ARGUMENTS."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress


def pinned(core: int, argv: Sequence[str]) -> tuple[str, ...]:
    """The command that runs `argv` on one core."""
    return (sys.executable, "-m", "benchmarks.harness.pinned", str(core), *argv)


def move(pid: int, core: int) -> None:
    """Moves all threads of a running process, not its children, to one core."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):  # it just ended
            os.sched_setaffinity(int(thread), {core})


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.harness.pinned", description="Runs a program on one core.")
    parser.add_argument("core", type=int, help="number of the core")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="program and its arguments")
    arguments = parser.parse_args()
    if not arguments.command:
        parser.error("a program is required")
    os.sched_setaffinity(0, {arguments.core})
    os.execvp(arguments.command[0], arguments.command)


if __name__ == "__main__":
    main()
