"""Cost curves: what a token, a request, a session, a drafter and a verifier cost each service, fitted over all cells;
and what grows faster than linearly. Pure.

Invariant: no cost is below 0. A curve is linear; where the cells say otherwise, `growths_of` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from scipy.optimize import nnls

from benchmarks.scale.cells import CENTRE, Cell
from benchmarks.scale.results import CellResult, Slice

LEAST_SHARE = 0.05  # of the largest value: smaller ones count no more than that in a fit
NOTABLE = 0.1  # share of an axis's last value above the line, from which growth counts as faster than linear
AXES = ("sessions", "drafters", "verifiers")


@dataclass(frozen=True, slots=True)
class Drivers:
    """What costs depend on. Rates are of the whole system."""

    tokens_per_s: float
    requests_per_s: float
    sessions: float
    drafters: float
    verifiers: float

    def values(self) -> tuple[float, ...]:
        return (*(getattr(self, name) for name in NAMES), 1.0)


NAMES = tuple(Drivers.__slots__)


@dataclass(frozen=True, slots=True)
class Observation:
    """A figure of a cell, with or without its sessions."""

    cell: Cell
    drivers: Drivers
    value: float
    is_loaded: bool = True


Figure: TypeAlias = Callable[[CellResult, Slice, bool], float]  # of a slice, which is loaded or idle


@dataclass(frozen=True, slots=True)
class Curve:
    """A cost for each driver, in the order of NAMES, and one for the service as such. error: root mean square of the
    cells' fitted / measured - 1."""

    costs: tuple[float, ...]
    error: float

    def at(self, drivers: Drivers) -> float:
        return float(np.dot(self.costs, drivers.values()))

    def cost(self, name: str) -> float:
        return self.costs[NAMES.index(name)]

    @property
    def fixed(self) -> float:
        return self.costs[-1]


def drivers_of(cell: Cell, measured: Slice, *, is_loaded: bool) -> Drivers:
    return Drivers(
        measured.num_tokens / measured.seconds,
        measured.num_requests / measured.seconds,
        cell.sessions if is_loaded else 0,
        cell.drafters,
        cell.verifiers,
    )


def observations_of(results: Sequence[CellResult], figure: Figure) -> list[Observation]:
    """Two of each cell: with its sessions, and before them."""
    found = []
    for result in results:
        for measured, is_loaded in ((result.loaded, True), (result.idle, False)):
            drivers = drivers_of(result.cell, measured, is_loaded=is_loaded)
            found.append(Observation(result.cell, drivers, figure(result, measured, is_loaded), is_loaded))
    return found


def fit(observations: Sequence[Observation]) -> Curve:
    """Least squares of relative errors. Raises ValueError without observations."""
    if not observations:
        raise ValueError("nothing to fit")
    features = np.array([each.drivers.values() for each in observations])  # [observations, drivers and 1]
    values = np.array([each.value for each in observations])
    weights = 1 / np.maximum(np.abs(values), max(LEAST_SHARE * np.abs(values).max(), 1e-12))
    scales = np.maximum(np.abs(features).max(axis=0), 1e-12)  # so that all costs are of one size
    costs, _ = nnls(features / scales * weights[:, None], values * weights)
    loaded = np.array([each.is_loaded for each in observations]) & (values > 0)
    fitted = features @ (costs / scales)
    errors = fitted[loaded] / values[loaded] - 1
    return Curve(tuple(map(float, costs / scales)), float(np.sqrt(np.mean(errors**2))) if errors.size else 0.0)


# --- figures ----------------------------------------------------------------------------------------------------------


def cpu_of(service: str) -> Figure:
    """Processor time of a service without its models, as a share of a core."""
    return lambda result, measured, is_loaded: measured.cpu_s[service] / measured.seconds


def memory_of(service: str) -> Figure:
    """MiB of a service."""
    return lambda result, measured, is_loaded: (result.loaded_mib if is_loaded else result.idle_mib)[service]


def bus_of(name: str) -> Figure:
    """Messages or bytes a second: a field of BusCounts."""
    return lambda result, measured, is_loaded: float(getattr(measured.bus, name)) / measured.seconds


# --- growth -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Growth:
    """A figure along an axis, the other numbers of the cell as in CENTRE. points: the varied number, and the figure at
    the centre's rate of tokens."""

    axis: str
    points: tuple[tuple[float, float], ...]
    slack: float  # that the last value may have above the line, beside NOTABLE: twice its error

    @property
    def above_line(self) -> float:
        """What the last point has beyond the line through the two before it."""
        (x1, y1), (x2, y2), (x3, y3) = self.points[-3:]
        return y3 - (y2 + max(y2 - y1, 0.0) / (x2 - x1) * (x3 - x2))

    @property
    def is_faster(self) -> bool:
        """Whether it grows faster than linearly."""
        return self.above_line > max(NOTABLE * self.points[-1][1], self.slack)


def growths_of(results: Sequence[CellResult], figure: Figure, per_token: float) -> list[Growth]:
    """Along each axis with three points or more. per_token: the figure's fitted cost of a token a second, by which
    cells with a little more or fewer tokens are compared."""
    found = []
    for axis in AXES:
        cells = sorted((each for each in results if _is_on(axis, each.cell)), key=lambda each: getattr(each.cell, axis))
        if len(cells) < 3:
            continue
        points = tuple((float(getattr(each.cell, axis)), _at_rate(each, figure, per_token)) for each in cells)
        found.append(Growth(axis, points, 2 * _error_of(cells[-1], figure)))
    return found


def _is_on(axis: str, cell: Cell) -> bool:
    return replace(CENTRE, **{axis: getattr(cell, axis)}) == cell


def _at_rate(result: CellResult, figure: Figure, per_token: float) -> float:
    return figure(result, result.loaded, True) - per_token * (result.tokens_per_s - result.cell.tokens_per_s)


def _error_of(result: CellResult, figure: Figure) -> float:
    """Standard error of a loaded figure, from its slices."""
    values = [figure(result, each, True) for each in result.slices]
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def curves_of(results: Sequence[CellResult], figures: Mapping[str, Figure]) -> dict[str, Curve]:
    """A curve for each figure, by its name."""
    return {name: fit(observations_of(results, figure)) for name, figure in figures.items()}
