"""Every policy on scenarios that training never saw: python -m awc_training evaluate.

Each policy runs in the transport of what it is compared with, a rival as the variant that is best there on training
scenarios. The oracle is the best static window of a scenario, chosen with hindsight. All meet the same requests and the
same guesses.

Invariant: what is compared is one score (`runs.scores`); a policy's own idea of speed is never asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from awc_training.rivals import NUM_TUNING, Variant, tuned
from awc_training.runs import SLIDING, STOP_AND_WAIT, TRANSPORTS, Reports, Transport, run, scores, static_cell
from awc_training.scenarios import HELD_OUT, Drawn, Family, drawn
from dsd_sim.studies.cells import Cell

NUM_HELD_OUT = 210
STATIC = {STOP_AND_WAIT.name: (0, *range(1, 13)), SLIDING.name: (0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32)}
POLICY_NAMES = ("wc-dnn", "ladder", "confidence", "closed-form", "goodput", "nightjar", "delay-ucb", "adaptive")
FREE_ONLY = {"adaptive"}  # choose chunk and free run as well, so they are none for stop-and-wait


class Scores(Struct, frozen=True):
    """Of one transport: soft goodput of every scenario, under each static window and each policy."""

    windows: tuple[int, ...]
    static: list[list[float]]  # [scenarios, windows]
    policies: dict[str, list[float]]  # [scenarios]
    tuned: dict[str, str]  # what of each policy is otherwise than registered

    def at(self, window: int) -> NDArray[np.float64]:
        """[scenarios]"""
        return np.array(self.static, np.float64)[:, self.windows.index(window)]

    @property
    def oracle(self) -> NDArray[np.float64]:
        """[scenarios] the best static window's."""
        best: NDArray[np.float64] = np.array(self.static, np.float64).max(axis=1)
        return best


class Evaluation(Struct, frozen=True):
    """What was run, and what it scored."""

    family: str
    num_scenarios: int
    classes: list[tuple[str, ...]]  # [scenarios]
    transports: dict[str, Scores]


def evaluate(
    folder: Path,
    family: Family = HELD_OUT,
    num: int = NUM_HELD_OUT,
    workers: int | None = None,
    num_tuning: int = NUM_TUNING,
) -> Evaluation:
    """`folder`: for results of runs; what it holds is not run again. `num_tuning`: scenarios to tune rivals on."""
    scenarios = drawn(family, num)
    best = tuned(folder, POLICY_NAMES, num_tuning, workers)
    cells = {name: cells_of(scenarios, transport, best[name]) for name, transport in TRANSPORTS.items()}
    wanted = [cell for found in cells.values() for row in found.values() for cell in row]
    reports = run(wanted, folder, workers)
    found = {name: _scores(cells[name], STATIC[name], reports, best[name]) for name in TRANSPORTS}
    return Evaluation(family.name, num, [each.classes for each in scenarios], found)


def cells_of(scenarios: Sequence[Drawn], transport: Transport, best: Mapping[str, Variant]) -> dict[str, list[Cell]]:
    """Of every window, named by its number, and of every policy: [scenarios] each."""
    found = {
        str(window): [static_cell(each.scenario, transport, transport.choice(window)) for each in scenarios]
        for window in STATIC[transport.name]
    }
    return found | {
        name: [variant.cell(each.scenario, transport) for each in scenarios]
        for name, variant in best.items()
        if transport.free_run or name not in FREE_ONLY
    }


def _scores(
    cells: Mapping[str, list[Cell]], windows: tuple[int, ...], reports: Reports, best: Mapping[str, Variant]
) -> Scores:
    static = [scores(cells[str(window)], reports) for window in windows]
    policies = {name: scores(cells[name], reports) for name in best if name in cells}
    told = {name: best[name].told for name in policies}
    return Scores(windows, np.array(static).T.tolist(), policies, told)
