"""Whether anything else computed while a system was measured.

Invariant: time counts as a system's own if a process of its groups, or this process, spent it. All other busy time of
the machine, stolen time included, is foreign.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.cell import TICKS_PER_S

MAX_FOREIGN_SHARE = 0.05  # of one core
TICKS_S = 0.05  # that the kernel's ticks of 10 ms may be off in a short time
IDLE, IOWAIT, NUM_FIELDS = 3, 4, 8  # in /proc/stat; further fields are parts of the first


@dataclass(frozen=True, slots=True)
class ProcessorTime:
    """at: on the monotonic clock. busy_s: of all cores; own_s: of the measured processes."""

    at: float
    busy_s: float
    own_s: float


def foreign_share(before: ProcessorTime, after: ProcessorTime) -> float:
    """Time that something else computed / time that passed: 1 is a whole core."""
    foreign_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return max(foreign_s, 0.0) / (after.at - before.at)


def is_void(share: float, seconds: float) -> bool:
    """Of a share measured over so many seconds."""
    return share > MAX_FOREIGN_SHARE + TICKS_S / seconds


def read(groups: Collection[int]) -> ProcessorTime:
    """Reads /proc, so Linux only. groups: process groups of the measured system."""
    lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    return ProcessorTime(time.monotonic(), busy_s(lines[0]), _own_s(groups))


def busy_s(line: str) -> float:
    """Of the first line of /proc/stat."""
    ticks = [int(each) for each in line.split()[1 : NUM_FIELDS + 1]]
    return (sum(ticks) - ticks[IDLE] - ticks[IOWAIT]) / TICKS_PER_S


def _own_s(groups: Collection[int]) -> float:
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # of processes that just ended
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[2]) in groups or int(path.parent.name) == os.getpid():
                ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S
