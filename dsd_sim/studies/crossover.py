"""Up to which value of a key one way of serving is as good as another: crossovers of a sweep.

Invariant: both ways are compared at equal values of everything else that is varied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

from msgspec import Struct
from pydantic import Field

from dsd_sim.scenario.table import Part
from dsd_sim.studies.report import FIGURES, is_lower_better


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


def complaint_about(crossover: Crossover, axes: Sequence[Sequence[Mapping[str, Any]]]) -> str | None:
    """What is wrong with it in a sweep along these axes, each a list of settings that are tried."""
    if crossover.figure not in FIGURES:
        return f"figure: {crossover.figure!r} must be one of {', '.join(FIGURES)}"
    varied = [{name for values in axis for name in values} for axis in axes]
    for name in (crossover.key, *crossover.against):
        if not any(name in names for names in varied):
            return f"{name} is not varied"
    for axis, names in zip(axes, varied, strict=True):
        beaten = {name: value for name, value in crossover.against.items() if name in names}
        if crossover.key in names:
            if beaten:
                return f"key: {crossover.key} is varied together with {', '.join(beaten)}"
            if not all(_is_number(values.get(crossover.key)) for values in axis):
                return f"key: the values of {crossover.key} must be numbers"
        if not any(beaten.items() <= values.items() for values in axis):
            return f"against: none of what is tried has {', '.join(f'{name} = {beaten[name]}' for name in beaten)}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
