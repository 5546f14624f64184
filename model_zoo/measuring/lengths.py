"""Histograms of the lengths of prompts and answers, from which the simulator's workloads draw.

Invariant: every length is counted in one bin, and the lower edge of each bin is a measured length.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from model_zoo.prompt_file import read_rows

# Bins begin at these quantiles of the lengths: tenths, and finer ones in the tails.
SHARES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


class Histogram(Struct, frozen=True):
    """`counts[i]` lengths are in edges[i] … edges[i + 1] - 1."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]


class MeasuredLengths(Struct, frozen=True):
    """The content of a file that a scenario's `file` names. origin: what was measured, and how."""

    origin: str
    prompt: Histogram
    answer: Histogram

    def write(self, path: Path) -> None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")


def histogram(lengths: Sequence[int]) -> Histogram:
    """Raises ValueError if there is no length, or one below 1."""
    if not lengths or min(lengths) < 1:
        raise ValueError("lengths must not be empty, and each must be at least 1")
    ordered = sorted(lengths)
    lows = sorted({ordered[int(share * len(ordered))] for share in SHARES})
    edges = (*lows, ordered[-1] + 1)
    counts = [sum(low <= length < high for length in ordered) for low, high in pairwise(edges)]
    return Histogram(edges, tuple(counts))


def lengths_of_trace(path: Path) -> MeasuredLengths:
    """The lengths of a trace's requests. Raises ValueError, which names the line, or OSError."""
    rows = read_rows(path)
    prompt, answer = (
        histogram([_count(path, number, row, key) for number, row in enumerate(rows, start=1)])
        for key in ("prompt_tokens", "target_tokens")
    )
    return MeasuredLengths(f"model_zoo lengths, {path.name}, {len(rows)} requests", prompt, answer)


def _count(path: Path, number: int, row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    if type(value) is not int or value < 1:
        raise ValueError(f"{path}:{number}: {key} must be a whole number of at least 1")
    return value
