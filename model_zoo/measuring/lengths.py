"""Histograms of the lengths of prompts and answers, from which the simulator's workloads draw.

Invariant: every length is counted in one bin, and the lower edge of each bin is a measured length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class TracedLengths:
    """Tokens of each request's prompt and answer in a trace."""

    prompt: list[int]
    answer: list[int]


def histogram(lengths: Sequence[int]) -> Histogram:
    """Raises ValueError if there is no length, or one below 1."""
    if not lengths or min(lengths) < 1:
        raise ValueError("lengths must not be empty, and each must be at least 1")
    ordered = sorted(lengths)
    lows = sorted({ordered[int(share * len(ordered))] for share in SHARES})
    edges = (*lows, ordered[-1] + 1)
    counts = [sum(low <= length < high for length in ordered) for low, high in pairwise(edges)]
    return Histogram(edges, tuple(counts))


def read_trace(path: Path) -> TracedLengths:
    """Raises ValueError, which names the line, or OSError."""
    rows = read_rows(path)
    prompts = [_count(path, number, row, "prompt_tokens") for number, row in enumerate(rows, start=1)]
    return TracedLengths(prompts, [_count(path, n, row, "target_tokens") for n, row in enumerate(rows, start=1)])


def _count(path: Path, number: int, row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    if type(value) is not int or value < 1:
        raise ValueError(f"{path}:{number}: {key} must be a whole number of at least 1")
    return value
