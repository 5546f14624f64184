"""Contestants: adaptive, its rivals in the variant that was tuned, static windows, and the paper's scheme.

All but the paper's run in our transport. A rival has up to four variants; `tune` takes the one with the best priced
goodput on development scenarios, and its choice is kept in tuned.json.

Invariant: what tuning sees is seen by nothing that decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from msgspec import json

from awc.policies.adaptive import AdaptivePolicy
from awc.policies.closed_form import ClosedFormPolicy
from awc.policies.confidence import ConfidencePolicy
from awc.policies.delay_bandit import DelayBanditPolicy
from awc.policies.goodput import GoodputPolicy
from awc.policies.ladder import LadderPolicy
from awc.policies.nightjar import NightjarPolicy
from awc.policies.pipeline import PipelinePolicy
from awc.policies.static import StaticPolicy
from awc.policies.wc_dnn import WcDnnPolicy
from awc.policy import WindowPolicy
from awc.registry import POLICIES
from awc.wrappers.pausing import PausingPolicy
from awc_training.development import development
from awc_training.intervals import geometric_mean
from awc_training.runs import SLIDING, STOP_AND_WAIT, Transport, cell, run
from awc_training.scenarios import FOLDER
from dsd_sim.scenario.scenario import Scenario
from dsd_sim.studies.cells import Cell

Options: TypeAlias = Mapping[str, Any]

TUNED = Path(__file__).with_name("tuned.json")
NUM_TUNING = 24  # development scenarios
START = 8  # window at the start
WINDOWS = (0, 2, 4, 8, 12, 16, 24, 32)  # static
OURS = AdaptivePolicy.name
PRICES = (0.0, 0.003, 0.03, 0.1)  # of the frontier, beside the registered one
PAUSING = "pipeline, pausing"
TARGET_ONLY = "static 0"  # a label
WIDE = (0, 4, 8, 16, 32)  # arms of a bandit for our transport

MAKERS: dict[str, Callable[..., WindowPolicy]] = {
    **POLICIES,
    PAUSING: lambda start: PausingPolicy(PipelinePolicy(start)),
}


@dataclass(frozen=True, slots=True)
class Contestant:
    """A policy with parameters, in a transport."""

    name: str
    start: int = START
    options: Options = field(default_factory=dict)
    transport: Transport = SLIDING

    @property
    def label(self) -> str:
        """The name, and what differs from the registered policy."""
        if self.name == StaticPolicy.name:
            return f"static {self.start}" + ("" if self.transport is SLIDING else f", {self.transport.name}")
        changed = dict(self.options) | ({"start": self.start} if self.start != START else {})
        return ", ".join((self.name, *(f"{key} {value}" for key, value in changed.items())))

    def policy(self) -> WindowPolicy:
        return MAKERS[self.name](self.transport.choice(self.start), **self.options)

    def cell(self, scenario: Scenario, folder: Path = FOLDER) -> Cell:
        """`folder`: of the scenario's files."""
        start = self.transport.choice(self.start)
        return cell(scenario, self.transport, self.policy(), start, folder)


def _variants(name: str, *options: Options, start: int = START) -> tuple[Contestant, ...]:
    return tuple(Contestant(name, start, each) for each in ({}, *options))


RIVALS: dict[str, tuple[Contestant, ...]] = {
    PipelinePolicy.name: _variants(PipelinePolicy.name),
    PAUSING: _variants(PAUSING),
    LadderPolicy.name: _variants(
        LadderPolicy.name,
        {"ema_weight": 0.4, "interval": 3},
        {"rungs": (4, 8, 16, 32)},
        {"rungs": (8, 12, 16, 24, 32)},
    ),
    ConfidencePolicy.name: (
        Contestant(ConfidencePolicy.name),
        *(Contestant(ConfidencePolicy.name, start) for start in (16, 24)),
        Contestant(ConfidencePolicy.name, 24, {"discarded_share": 0.4}),
    ),
    ClosedFormPolicy.name: _variants(
        ClosedFormPolicy.name, {"half_life": 64.0}, {"margin": 0.05}, {"margin": 0.0, "assumed_matches": 1.0}
    ),
    GoodputPolicy.name: _variants(
        GoodputPolicy.name, {"half_life": 64.0}, {"margin": 0.05}, {"margin": 0.0, "assumed_matches": 1.0}
    ),
    NightjarPolicy.name: _variants(
        NightjarPolicy.name, {"arms": WIDE}, {"arms": WIDE, "bin_reports": 8}, {"arms": WIDE, "newest": 0.5}
    ),
    DelayBanditPolicy.name: _variants(DelayBanditPolicy.name, {"explore": 0.03}, {"explore": 0.3}, {"discount": 0.95}),
}
PAPER = (  # the scheme of arXiv 2511.21669
    Contestant(StaticPolicy.name, 4, transport=STOP_AND_WAIT),
    Contestant(WcDnnPolicy.name, 4, transport=STOP_AND_WAIT),
)


def tune(folder: Path, workers: int | None, num: int = NUM_TUNING) -> dict[str, int]:
    """The number of the best variant of each rival. `folder`: of the results of runs."""
    scenarios = development(num)
    cells = {each.label: [each.cell(one) for one in scenarios] for rival in RIVALS.values() for each in rival}
    reports = run((one for row in cells.values() for one in row), folder, workers)

    def score(each: Contestant) -> float:
        return geometric_mean([reports[one.key].priced_goodput for one in cells[each.label]])

    return {name: max(range(len(rival)), key=lambda i: score(rival[i])) for name, rival in RIVALS.items()}


def write_tuned(found: Mapping[str, int]) -> None:
    TUNED.write_bytes(json.format(json.encode(found), indent=1) + b"\n")


def contestants() -> Sequence[Contestant]:
    """Ours first, then everybody that it is compared with."""
    tuned = json.decode(TUNED.read_bytes(), type=dict[str, int])
    rivals = [variants[tuned.get(name, 0)] for name, variants in RIVALS.items()]
    statics = [Contestant(StaticPolicy.name, window) for window in WINDOWS]
    return [Contestant(OURS), *rivals, *statics, *PAPER]


def other_prices() -> Sequence[Contestant]:
    """Ours at other prices, for the frontier."""
    return [Contestant(OURS, options={"price": price}) for price in PRICES]
