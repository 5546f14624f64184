"""Crossovers of a sweep: the value of a key up to which one combination is at least as good as another.

Invariant: both are compared at equal values of all other keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

from msgspec import Struct
from pydantic import Field

from dsd_sim.scenario.table import Table
from dsd_sim.studies.report import FIGURES, is_lower_better


class Crossover(Table):
    """The table `[sweep.crossover]`: compares each combination along `key` with those that have `against`."""

    key: str
    against: Annotated[dict[str, Any], Field(min_length=1)]  # settings of the combinations to beat
    figure: str = "tpot_ms.mean"


class Crossing(Struct, frozen=True):
    """The crossover of one combination. `at`: last value of the key at which the figure is at least as good,
    interpolated; None if it is worse at the first value. `is_limit`: false if `at` is the last value of the sweep."""

    settings: dict[str, Any]
    key: str
    at: float | None
    is_limit: bool


def problem_with(crossover: Crossover, axes: Sequence[Sequence[Mapping[str, Any]]]) -> str | None:
    """What is wrong with a crossover in a sweep; None if nothing is. `axes`: the settings tried along each."""
    if crossover.figure not in FIGURES:
        return f"figure: must be one of {', '.join(FIGURES)}, got {crossover.figure!r}"
    varied = [{name for values in axis for name in values} for axis in axes]
    for name in (crossover.key, *crossover.against):
        if not any(name in names for names in varied):
            return f"{name} is not among the keys of the sweep"
    for axis, names in zip(axes, varied, strict=True):
        beaten = {name: value for name, value in crossover.against.items() if name in names}
        if crossover.key in names:
            if beaten:
                return f"key: {crossover.key} is varied together with {', '.join(beaten)}"
            if not all(is_number(values.get(crossover.key)) for values in axis):
                return f"key: the values of {crossover.key} must be numbers"
        if not any(beaten.items() <= values.items() for values in axis):
            return f"against: no combination has {', '.join(f'{name} = {beaten[name]}' for name in beaten)}"
    return None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def crossing_of(
    crossover: Crossover,
    settings: Mapping[str, Any],
    values: Sequence[float],
    ours: Sequence[float],
    theirs: Sequence[float],
) -> Crossing:
    """`values`: of the key, ascending. `ours`, `theirs`: the figure at each value."""
    key, sign = crossover.key, 1.0 if is_lower_better(crossover.figure) else -1.0
    behind = [sign * (mine - other) for mine, other in zip(ours, theirs, strict=True)]
    if behind[0] > 0:
        return Crossing(dict(settings), key, None, is_limit=True)
    for (low, before), (high, after) in pairwise(zip(values, behind, strict=True)):
        if after > 0:
            return Crossing(dict(settings), key, low + (high - low) * before / (before - after), is_limit=True)
    return Crossing(dict(settings), key, values[-1], is_limit=False)
