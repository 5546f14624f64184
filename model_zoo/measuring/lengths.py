"""How long prompts and answers are: histograms that the simulator's workloads draw from.

Invariant: every length is counted once, in a bin whose lower edge was itself measured; the file says what was measured.
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

# A bin begins at each of these shares of the sorted lengths: tenths, and narrower where a tail would be flattened.
SHARES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


class Histogram(Struct, frozen=True):
    """`counts[i]` lengths from edges[i] up to, and without, edges[i + 1]."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]


class MeasuredLengths(Struct, frozen=True):
    """A file, as `file` of a scenario's lengths reads it; `origin`: what was measured, and how."""

    origin: str
    prompt: Histogram
    answer: Histogram

    def write(self, path: Path) -> None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")


@dataclass(frozen=True, slots=True)
class TracedLengths:
    """Tokens of the prompts and of the answers of a trace's requests."""

    prompt: list[int]
    answer: list[int]


def histogram(lengths: Sequence[int]) -> Histogram:
    """Raises ValueError where there is no length, or one below 1."""
    if not lengths or min(lengths) < 1:
        raise ValueError("there must be lengths, each of at least one token")
    ordered = sorted(lengths)
    lows = sorted({ordered[int(share * len(ordered))] for share in SHARES})
    edges = (*lows, ordered[-1] + 1)
    counts = [sum(low <= length < high for length in ordered) for low, high in pairwise(edges)]
    return Histogram(edges, tuple(counts))


def read_trace(path: Path) -> TracedLengths:
    """Raises ValueError naming the line at fault, or OSError."""
    rows = read_rows(path)
    prompts = [_count(path, number, row, "prompt_tokens") for number, row in enumerate(rows, start=1)]
    return TracedLengths(prompts, [_count(path, n, row, "target_tokens") for n, row in enumerate(rows, start=1)])


def _count(path: Path, number: int, row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    if type(value) is not int or value < 1:
        raise ValueError(f"{path}:{number}: {key} must be a whole number of at least 1")
    return value
