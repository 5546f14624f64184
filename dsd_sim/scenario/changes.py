"""Changes and failures of a scenario, as FleetChanges for the engine.

Invariant: the devices and verifiers that fail are drawn from the scenario's seed before the run.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsd_sim.engine.fleet import FleetChange, SimFleet
from dsd_sim.scenario.guesses import acceptance_of
from dsd_sim.scenario.scenario import Change, Failure, Link, LinkChange, Scenario

LINK_COLUMNS = {  # key of a link: column of the world's devices, and factor
    "rtt_ms": ("delay_ms", 0.5),
    "jitter_ms": ("jitter_ms", 1.0),
    "bandwidth_mbit": ("bits_per_ms", 1000.0),
    "stall_rate": ("stall_rate", 1.0),
    "stall_ms": ("stall_ms", 1.0),
}


def changes_of(scenario: Scenario, folder: Path, rng: np.random.Generator) -> list[FleetChange]:
    """All changes and failures, unordered. Raises BadScenario for a recording that can't be used."""
    found = []
    for number, change in enumerate(scenario.change):
        found.append(_changed(change, _devices(scenario, change.edge), folder, f"change.{number}"))
    for failure in scenario.failure:
        found += _failed(failure, scenario, rng)
    return found


def write_link(devices: NDArray[Any], link: Link | LinkChange) -> None:
    """Sets the given keys of a link in the records of devices."""
    for name, (column, factor) in LINK_COLUMNS.items():
        value = getattr(link, name)
        if value is not None:
            devices[column] = value * factor


def _devices(scenario: Scenario, name: str | None) -> list[int]:
    """The devices of an edge; all devices without a name."""
    names = [edge.name for edge in scenario.edge for _ in range(edge.count)]
    return [index for index, each in enumerate(names) if name in (None, each)]


def _changed(change: Change, devices: list[int], folder: Path, place: str) -> FleetChange:
    acceptance = acceptance_of(change.guesses, folder, place) if change.guesses is not None else None

    def act(fleet: SimFleet) -> None:
        for index in devices:
            device = fleet.world.devices[index : index + 1]
            if change.link is not None:
                write_link(device, change.link)
            if change.draft_slowdown is not None:
                device["slowdown"] = change.draft_slowdown
            if acceptance is not None:
                fleet.acceptance[index] = acceptance
        if change.pass_slowdown is not None:
            fleet.world.nodes["slowdown"] = change.pass_slowdown

    return FleetChange(change.at_s * 1000, act)


def _failed(failure: Failure, scenario: Scenario, rng: np.random.Generator) -> list[FleetChange]:
    begin, end = failure.at_s * 1000, (failure.at_s + failure.for_s) * 1000
    if failure.part == "controller":
        return [FleetChange(begin, lambda fleet: fleet.stop_controller(end))]
    num_nodes = sum(cloud.count for cloud in scenario.cloud)
    candidates = list(range(num_nodes)) if failure.part == "verifiers" else _devices(scenario, failure.edge)
    num = math.ceil(failure.share * len(candidates))
    chosen = sorted(int(index) for index in rng.choice(candidates, num, replace=False)) if candidates else []
    if failure.part == "links":
        return [FleetChange(begin, lambda fleet: fleet.cut_links(chosen, end))]
    return [
        FleetChange(begin, lambda fleet: fleet.lose(failure.part, chosen)),
        FleetChange(end, lambda fleet: fleet.restore(failure.part, chosen)),
    ]
