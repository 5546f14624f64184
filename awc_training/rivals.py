"""Rivals at their best: of each one's variants, every transport gets the one that scores most on training scenarios.

Invariant: no held-out scenario has a part in the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from awc.policy import WindowChoice, WindowPolicy
from awc.registry import POLICIES
from awc.wrappers.resting import RestingPolicy
from awc_training.runs import TRANSPORTS, Transport, cell, run, scores
from awc_training.scenarios import TRAINING, drawn
from dsd_sim.scenario.scenario import Scenario
from dsd_sim.studies.cells import Cell

Options: TypeAlias = Mapping[str, Any]

NUM_TUNING = 60  # scenarios
START = 4  # the window that a policy starts with


@dataclass(frozen=True, slots=True)
class Rival:
    """How it is made, and what is tried beside its own constants."""

    make: Callable[..., WindowPolicy]  # (start, **options)
    others: tuple[Options, ...]
    starts: tuple[int, ...] = (START,)


def _resting(kind: Callable[..., WindowPolicy]) -> Callable[..., WindowPolicy]:
    def make(start: WindowChoice, **options: Any) -> WindowPolicy:
        return RestingPolicy(kind(start, **options))

    return make


RIVALS = {
    LadderPolicy.name: Rival(
        _resting(LadderPolicy),
        ({"ema_weight": 0.4, "interval": 3}, {"rungs": (1, 2, 4, 8)}, {"rungs": (4, 8, 16, 32)}),
    ),
    # The window that it starts with is one that it never leaves.
    ConfidencePolicy.name: Rival(
        _resting(ConfidencePolicy), ({"discarded_share": 0.1}, {"discarded_share": 0.4}), starts=(START, 8, 16, 24)
    ),
    ClosedFormPolicy.name: Rival(ClosedFormPolicy, ({"half_life": 64.0}, {"margin": 0.05})),
    GoodputPolicy.name: Rival(GoodputPolicy, ({"half_life": 64.0}, {"margin": 0.05})),
    NightjarPolicy.name: Rival(
        NightjarPolicy, ({"bin_reports": 2}, {"bin_reports": 8}, {"newest": 0.5}, {"arms": (0, 2, 4, 8, 16, 24)})
    ),
    DelayBanditPolicy.name: Rival(
        _resting(DelayBanditPolicy), ({"explore": 0.03}, {"explore": 0.3}, {"discount": 0.95})
    ),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """A policy with other settings than those that it is registered with."""

    name: str
    start: int = START
    options: Options = field(default_factory=dict)

    @property
    def told(self) -> str:
        """What is otherwise."""
        changed = dict(self.options) | ({"start": self.start} if self.start != START else {})
        return ", ".join(f"{key} {value}" for key, value in changed.items()) or "as it is"

    def cell(self, scenario: Scenario, transport: Transport) -> Cell:
        start = transport.choice(self.start)
        policy = RIVALS[self.name].make(start, **self.options) if self.options else POLICIES[self.name](start)
        return cell(scenario, transport, policy, start)


def variants(name: str) -> list[Variant]:
    """Of a policy; just itself where it is not a rival."""
    rival = RIVALS.get(name)
    if rival is None:
        return [Variant(name)]
    return [Variant(name, start, options) for start in rival.starts for options in ({}, *rival.others)]


def tuned(folder: Path, names: tuple[str, ...], num: int, workers: int | None) -> dict[str, dict[str, Variant]]:
    """The best variant of each policy, by transport and name. `folder`: for results of runs."""
    scenarios = [each.scenario for each in drawn(TRAINING, num)]
    cells = {
        (transport.name, name): [[each.cell(scenario, transport) for scenario in scenarios] for each in variants(name)]
        for transport in TRANSPORTS.values()
        for name in names
        if name in RIVALS
    }
    reports = run((one for rows in cells.values() for row in rows for one in row), folder, workers)
    best: dict[str, dict[str, Variant]] = {
        transport: {name: Variant(name) for name in names} for transport in TRANSPORTS
    }
    for (transport, name), rows in cells.items():
        table = np.array([scores(row, reports) for row in rows])  # [variants, scenarios]
        shares = table / np.maximum(table.max(axis=0), 1e-9)
        best[transport][name] = variants(name)[int(np.argmax(shares.mean(axis=1)))]
    return best
