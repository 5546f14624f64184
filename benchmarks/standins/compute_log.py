"""Logs of passes and draft steps: one line each.

Invariant: seconds are of the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec


class ComputeRecord(msgspec.Struct, frozen=True, array_like=True):
    """A pass or a draft step."""

    start_s: float
    end_s: float
    num_sessions: int
    num_tokens: int  # fed
    num_cached: int  # in the KV caches before
    cpu_s: float = 0.0  # processor time of the thread that computed

    @property
    def elapsed_ms(self) -> float:
        return (self.end_s - self.start_s) * 1e3


class ComputeLog:
    """A log file. A line is one write, so threads may share it. A context manager."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> ComputeLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, start_s: float, num_sessions: int, num_tokens: int, num_cached: int, cpu_s: float) -> None:
        """Adds what ran from `start_s` until now."""
        record = ComputeRecord(start_s, time.monotonic(), num_sessions, num_tokens, num_cached, cpu_s)
        self._file.write(msgspec.json.encode(record) + b"\n")


def read_compute_log(path: Path) -> list[ComputeRecord]:
    """All complete lines, also while the service runs."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [msgspec.json.decode(line, type=ComputeRecord) for line in whole.splitlines()]
