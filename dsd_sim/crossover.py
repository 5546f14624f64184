"""Up to which value of a key one way of serving is as good as another: crossovers of a sweep.

Invariant: both ways are compared at equal values of everything else that is varied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

from msgspec import Struct
from pydantic import Field

from dsd_sim.part import Part
from dsd_sim.report import FIGURES, is_lower_better


class Crossover(Part):
    """The table `[sweep.crossover]`: how far along `key` does each combination stay ahead of those with `against`?"""

    key: str
    against: Annotated[dict[str, Any], Field(min_length=1)]  # settings by which the combinations to beat are known
    figure: str = "tpot_ms.mean"


class Crossing(Struct, frozen=True):
    """Of one combination. `at`: interpolated between values of the key; None where the figure is worse from the first
    value on. `is_limit`: it is worse behind that, else `at` is the last value of the sweep."""

    settings: dict[str, Any]
    key: str
    at: float | None
    is_limit: bool


def complaint_about(crossover: Crossover, keys: Sequence[str]) -> str | None:
    """What is wrong with it in a sweep of these keys."""
    if crossover.figure not in FIGURES:
        return f"figure: {crossover.figure!r} must be one of {', '.join(FIGURES)}"
    for name in (crossover.key, *crossover.against):
        if name not in keys:
            return f"{name} is not varied"
    return None


def crossing_of(
    crossover: Crossover,
    settings: Mapping[str, Any],
    values: Sequence[float],
    ours: Sequence[float],
    theirs: Sequence[float],
) -> Crossing:
    """`values` of the key, ascending, and the figure at each of them."""
    key, sign = crossover.key, 1.0 if is_lower_better(crossover.figure) else -1.0
    behind = [sign * (mine - other) for mine, other in zip(ours, theirs, strict=True)]
    if behind[0] > 0:
        return Crossing(dict(settings), key, None, is_limit=True)
    for (low, before), (high, after) in pairwise(zip(values, behind, strict=True)):
        if after > 0:
            return Crossing(dict(settings), key, low + (high - low) * before / (before - after), is_limit=True)
    return Crossing(dict(settings), key, values[-1], is_limit=False)
