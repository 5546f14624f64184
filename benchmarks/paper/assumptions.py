"""What the paper (arXiv 2511.21669) does not say, varied: which assumptions give its figures?

Varied together around the cell gsm8k-600-10: pass and draft times (factors), clients, acceptance. For each combination:
static 4 and the paper's full stack at a round trip of 10 ms, static 4 at FAR_MS, and the cloud alone.

Invariant: all runs of a combination have the same requests and guesses.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsd_sim.scenario.scenario import read_toml
from dsd_sim.studies.cells import Cell, cell_of
from dsd_sim.studies.report import SimReport
from shared.data.profiles import read_profile

NEAR_MS, FAR_MS = 10.0, 60.0
ROUNDS, WARM_UP = 6, 0.2  # requests of a client, and share left out
PASSES, DRAFTS, CLIENTS, RATES = (0.5, 1.0, 2.0), (0.25, 0.5, 1.0), (75, 150, 300), (0.7, 0.8, 0.9)
STATIC = {"policies": {"stop_and_wait": True, "window": 4, "batching": "fifo"}}
STACK = {"policies": {"stop_and_wait": True, "window": 4, "batching": "lab", "windows": "wc-dnn"}}
CLOUD = {"policies": {"drafting": False}}
PER_S, GAIN, CROSSING_MS = (22.6, 27.6), (1.09, 1.15), (50.0, 60.0)  # the paper: 25.1, 28.1 / 25.1, 50 to 60


@dataclass(frozen=True, slots=True)
class Assumption:
    """One combination. Factors multiply the computed times; `rate` is the share of right guesses."""

    passes: float = 1.0
    drafts: float = 1.0
    clients: int = 150
    rate: float = 0.8


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an assumption gives."""

    assumed: Assumption
    per_s: float  # requests per second of static 4
    tpot_ms: float  # of static 4
    gain: float  # requests per second of the full stack, divided by those of static 4
    crossing_ms: float  # round trip at which static 4 is as slow as the cloud alone; below 0: never as fast

    @property
    def met(self) -> tuple[bool, bool, bool]:
        """Which of the paper's figures it gives: requests per second, gain, crossover."""
        found = ((self.per_s, PER_S), (self.gain, GAIN), (self.crossing_ms, CROSSING_MS))
        throughput, gain, crossing = (low <= value <= high for value, (low, high) in found)
        return throughput, gain, crossing

    @property
    def distance(self) -> float:
        """Sum of the relative distances from the paper's figures."""
        found = ((self.per_s, 25.1), (self.gain - 1, 0.12), (self.crossing_ms, 55.0))
        return sum(abs(value / wanted - 1) for value, wanted in found)


GRID = tuple(Assumption(*each) for each in itertools.product(PASSES, DRAFTS, CLIENTS, RATES))


def cells_of(assumed: Assumption, path: Path) -> Iterator[Cell]:
    """Static 4 and the full stack near, static 4 far, the cloud alone."""
    content = read_toml(path)
    edge = [_timed(group, "step_times", assumed.drafts, path) for group in content["edge"]]
    cloud = [_timed(group, "pass_times", assumed.passes, path) for group in content["cloud"]]
    workload = content["workload"] | {"num_clients": assumed.clients, "num_requests": ROUNDS * assumed.clients}
    guesses = {"kind": "independent", "rate": assumed.rate}
    for policies, rtt_ms in ((STATIC, NEAR_MS), (STACK, NEAR_MS), (STATIC, FAR_MS), (CLOUD, NEAR_MS)):
        devices = [group | {"guesses": guesses, "link": group["link"] | {"rtt_ms": rtt_ms}} for group in edge]
        yield cell_of(content | policies | {"edge": devices, "cloud": cloud, "workload": workload}, path, {}, WARM_UP)


def _timed(group: Mapping[str, Any], kind: str, factor: float, path: Path) -> dict[str, Any]:
    """A group with the times of its profile, multiplied."""
    times = getattr(read_profile(path.parent / group["profile"]), kind).model_dump()
    scaled = {name: _scaled(value, factor) for name, value in times.items() if value is not None}
    return {name: value for name, value in group.items() if name != "profile"} | {"times": scaled}


def _scaled(value: Any, factor: float) -> Any:
    return [factor * each for each in value] if isinstance(value, list | tuple) else factor * value


def outcome_of(assumed: Assumption, cells: Sequence[Cell], reports: Mapping[str, SimReport]) -> Outcome:
    """`cells`: as `cells_of` made them. The TPOT of static 4 grows with the round trip along a line."""
    near, stack, far, cloud = (reports[cell.key] for cell in cells)
    slope = (far.tpot_ms.mean - near.tpot_ms.mean) / (FAR_MS - NEAR_MS)
    crossing_ms = NEAR_MS + (cloud.tpot_ms.mean - near.tpot_ms.mean) / slope
    gain = stack.requests_per_s / near.requests_per_s
    return Outcome(assumed, near.requests_per_s, near.tpot_ms.mean, gain, crossing_ms)


def alone(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes with at most one assumption that is not ours."""
    ours = Assumption()
    names = Assumption.__slots__
    return [each for each in outcomes if sum(getattr(each.assumed, name) != getattr(ours, name) for name in names) <= 1]
