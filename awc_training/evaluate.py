"""Every policy on held-out scenarios: python -m awc_training evaluate.

Each policy runs in each transport, a rival as its best variant there on training scenarios. The oracle is the best
static window of each scenario, chosen with hindsight.

Invariant: all get the same requests and guesses, and are compared by one score (`runs.scores`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from awc.policies.adaptive import AdaptivePolicy
from awc.policies.static import StaticPolicy
from awc.registry import POLICIES
from awc_training.rivals import NUM_TUNING, RivalVariant, tuned
from awc_training.runs import SLIDING, STOP_AND_WAIT, TRANSPORTS, Reports, Transport, run, scores, static_cell
from awc_training.scenarios import HELD_OUT, DrawnScenario, drawn
from dsd_sim.studies.cells import Cell

NUM_HELD_OUT = 210
STATIC = {STOP_AND_WAIT.name: (0, *range(1, 13)), SLIDING.name: (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32)}
POLICY_NAMES = tuple(name for name in POLICIES if name != StaticPolicy.name)
SLIDING_ONLY = {AdaptivePolicy.name}  # these choose chunk and free run themselves


class Scores(Struct, frozen=True):
    """Soft goodput of every scenario in one transport, with each static window and each policy."""

    windows: tuple[int, ...]
    static: list[list[float]]  # [scenarios, windows]
    policies: dict[str, list[float]]  # [scenarios]
    tuned: dict[str, str]  # parameters of each policy that differ from the registered ones

    def at(self, window: int) -> NDArray[np.float64]:
        """[scenarios]"""
        return np.array(self.static, np.float64)[:, self.windows.index(window)]

    @property
    def oracle(self) -> NDArray[np.float64]:
        """[scenarios] of the best static window."""
        best: NDArray[np.float64] = np.array(self.static, np.float64).max(axis=1)
        return best


class Evaluation(Struct, frozen=True):
    """Scores of all policies on the held-out scenarios."""

    num_scenarios: int
    classes: list[tuple[str, ...]]  # [scenarios]
    transports: dict[str, Scores]


def evaluate(folder: Path, num: int, workers: int | None) -> Evaluation:
    """`folder`: of the results of runs, which are reused."""
    scenarios = drawn(HELD_OUT, num)
    best = tuned(folder, POLICY_NAMES, NUM_TUNING, workers)
    cells = {name: cells_of(scenarios, transport, best[name]) for name, transport in TRANSPORTS.items()}
    wanted = [cell for found in cells.values() for row in found.values() for cell in row]
    reports = run(wanted, folder, workers)
    found = {name: _scores(cells[name], STATIC[name], reports, best[name]) for name in TRANSPORTS}
    return Evaluation(num, [each.classes for each in scenarios], found)


def cells_of(
    scenarios: Sequence[DrawnScenario], transport: Transport, best: Mapping[str, RivalVariant]
) -> dict[str, list[Cell]]:
    """[scenarios] cells of every static window, by its number, and of every policy, by its name."""
    found = {
        str(window): [static_cell(each.scenario, transport, transport.choice(window)) for each in scenarios]
        for window in STATIC[transport.name]
    }
    return found | {
        name: [variant.cell(each.scenario, transport) for each in scenarios]
        for name, variant in best.items()
        if transport.free_run or name not in SLIDING_ONLY
    }


def _scores(
    cells: Mapping[str, list[Cell]], windows: tuple[int, ...], reports: Reports, best: Mapping[str, RivalVariant]
) -> Scores:
    static = [scores(cells[str(window)], reports) for window in windows]
    policies = {name: scores(cells[name], reports) for name in best if name in cells}
    labels = {name: best[name].label for name in policies}
    return Scores(windows, np.array(static).T.tolist(), policies, labels)
