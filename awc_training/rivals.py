"""Tuning of rivals: each transport gets the variant of each rival with the best score on training scenarios.

Invariant: tuning sees no held-out scenario.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from awc.policies.closed_form import ClosedFormPolicy
from awc.policies.confidence import ConfidencePolicy
from awc.policies.delay_bandit import DelayBanditPolicy
from awc.policies.goodput import GoodputPolicy
from awc.policies.ladder import LadderPolicy
from awc.policies.nightjar import NightjarPolicy
from awc.registry import POLICIES
from awc_training.runs import TRANSPORTS, Transport, cell, run, scores
from awc_training.scenarios import TRAINING, drawn
from dsd_sim.scenario.scenario import Scenario
from dsd_sim.studies.cells import Cell

Options: TypeAlias = Mapping[str, Any]

NUM_TUNING = 60  # scenarios
START = 4  # window at the start

RIVALS: dict[str, tuple[Options, ...]] = {  # parameters to try beside the registered ones
    LadderPolicy.name: ({"ema_weight": 0.4, "interval": 3}, {"rungs": (1, 2, 4, 8)}, {"rungs": (4, 8, 16, 32)}),
    ConfidencePolicy.name: ({"discarded_share": 0.1}, {"discarded_share": 0.4}),
    ClosedFormPolicy.name: ({"half_life": 64.0}, {"margin": 0.05}),
    GoodputPolicy.name: ({"half_life": 64.0}, {"margin": 0.05}),
    NightjarPolicy.name: ({"bin_reports": 2}, {"bin_reports": 8}, {"newest": 0.5}, {"arms": (0, 2, 4, 8, 16, 24)}),
    DelayBanditPolicy.name: ({"explore": 0.03}, {"explore": 0.3}, {"discount": 0.95}),
}
STARTS = {ConfidencePolicy.name: (START, 8, 16, 24)}  # the policy never changes its window; others: START


@dataclass(frozen=True, slots=True)
class RivalVariant:
    """A registered policy with other parameters."""

    name: str
    start: int = START
    options: Options = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The parameters that differ from the registered ones."""
        changed = dict(self.options) | ({"start": self.start} if self.start != START else {})
        return ", ".join(f"{key} {value}" for key, value in changed.items()) or "as registered"

    def cell(self, scenario: Scenario, transport: Transport) -> Cell:
        start = transport.choice(self.start)
        return cell(scenario, transport, POLICIES[self.name](start, **self.options), start)


def variants(name: str) -> list[RivalVariant]:
    """The variants of a policy; only the registered one for a policy of ours."""
    options = ({}, *RIVALS.get(name, ()))
    return [RivalVariant(name, start, each) for start in STARTS.get(name, (START,)) for each in options]


def tuned(folder: Path, names: tuple[str, ...], num: int, workers: int | None) -> dict[str, dict[str, RivalVariant]]:
    """The best variant of each policy, by transport and name. `folder`: of the results of runs."""
    scenarios = [each.scenario for each in drawn(TRAINING, num)]
    cells = {
        (transport.name, name): [[each.cell(scenario, transport) for scenario in scenarios] for each in variants(name)]
        for transport in TRANSPORTS.values()
        for name in names
        if name in RIVALS
    }
    reports = run((one for rows in cells.values() for row in rows for one in row), folder, workers)
    best: dict[str, dict[str, RivalVariant]] = {
        transport: {name: RivalVariant(name) for name in names} for transport in TRANSPORTS
    }
    for (transport, name), rows in cells.items():
        table = np.array([scores(row, reports) for row in rows])  # [variants, scenarios]
        shares = table / np.maximum(table.max(axis=0), 1e-9)
        best[transport][name] = variants(name)[int(np.argmax(shares.mean(axis=1)))]
    return best
