"""Shared verifiers: whether speculation is slower than target-only, and whether a drafter starves.

Invariant: all ways of serving get the same fleets, requests and guesses.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from awc.policies.adaptive import AdaptivePolicy
from awc.policies.static import StaticPolicy
from awc.policy import WindowChoice, WindowPolicy
from awc.registry import POLICIES
from awc.wrappers.pausing import PausingPolicy
from awc_training.runs import SLIDING, cell
from awc_training.scenarios import FOLDER, shared_verifiers
from dsd_sim.engine.world import World
from dsd_sim.scenario.build import make_fleet
from dsd_sim.studies.report import report_of

START = 8
WAYS: dict[str, tuple[int, Callable[[WindowChoice], WindowPolicy]]] = {  # the first window, and the policy
    "target-only": (0, StaticPolicy),
    "static 8": (8, StaticPolicy),
    "ladder": (START, POLICIES["ladder"]),
    "adaptive without shares": (START, lambda start: PausingPolicy(AdaptivePolicy(start))),
    "adaptive": (START, POLICIES["adaptive"]),
}


class SharedVerifierResult(Struct, frozen=True):
    """One way of serving on one shared verifier."""

    scenario: str
    way: str
    tokens_per_s: float
    tpot_ms: float
    jain: float  # fairness of the drafters' tokens per second: 1 when all are equal
    slowest: float  # tokens per second of the slowest drafter / mean of target-only


def serve_shared_verifiers() -> list[SharedVerifierResult]:
    """Runs every scenario in every way."""
    found = []
    for scenario in shared_verifiers():
        alone = 0.0
        for way, (window, make) in WAYS.items():
            start = SLIDING.choice(window)
            policy = make(start)
            ready = cell(scenario, SLIDING, policy, start).scenario
            fleet = make_fleet(ready, FOLDER)
            fleet.policy = policy
            fleet.run()
            report, speeds = report_of(ready, fleet), speeds_of(fleet.world)
            alone = alone or float(speeds.mean())
            slowest = float(speeds.min()) / alone
            figures = (report.tokens_per_s, report.tpot_ms.mean, jain(speeds), slowest)
            found.append(SharedVerifierResult(scenario.name, way, *figures))
    return found


def speeds_of(world: World) -> NDArray[np.float64]:
    """Tokens per second of the answers that each drafter served: [drafters with answers]."""
    requests = world.requests[world.requests["device"] >= 0]
    device = requests["device"]
    tokens = np.bincount(device, requests["tokens"], len(world.devices))
    seconds = np.bincount(device, (requests["done_ms"] - requests["first_ms"]) / 1000, len(world.devices))
    found: NDArray[np.float64] = tokens[seconds > 0] / seconds[seconds > 0]
    return found


def jain(values: NDArray[np.float64]) -> float:
    """Jain's fairness index: 1 / n when one has all, 1 when all are equal."""
    return float(values.sum() ** 2 / (len(values) * (values**2).sum()))
