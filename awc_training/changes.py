"""How policies follow a change of the scenario: when their windows settle, and how often they change.

A window has settled when it stays within NEAR of its last value. Its time counts from when the change reaches the pair;
a change of the guesses reaches it with its next answer. Only the first 2 * CHANGE_S count, because clients run out of
requests then. Every change is simulated with each of SEEDS.

Invariant: policies and oracle get the same requests and guesses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from awc.registry import POLICIES
from awc_training.evaluate import table
from awc_training.intervals import Interval, mean, median, ratio
from awc_training.runs import SLIDING, cell, run, static_cell
from awc_training.scenarios import CHANGE_S, FOLDER, Changing, changing
from dsd_sim.engine.world import STEER, World
from dsd_sim.scenario.build import make_fleet
from dsd_sim.studies.report import report_of

START = 8
WINDOWS = (0, 2, 4, 8, 16, 24, 32)
LOG_ROOM = 1 << 18
NEAR = 0.25  # of the last window, at least one token
SLOWEST = 0.9  # quantile of the pairs' settling times
SEEDS = (31, 32, 33, 34, 35)


class ChangeRun(NamedTuple):
    """One policy through one change with one seed."""

    settled_s: float  # until 9 of 10 pairs have settled
    changes_per_min: float  # changes of a pair's window
    changes_settled: float  # window changes of all pairs once settled
    against_oracle: float  # priced goodput / that of the best static window of each phase


@dataclass(frozen=True, slots=True)
class ChangeResult:
    """One policy through one change over all seeds: median and longest settling time, means of the rest."""

    scenario: str
    policy: str
    settled_s: Interval
    longest_s: float
    changes_per_min: Interval
    changes_settled: Interval
    against_oracle: Interval

    @property
    def row(self) -> str:
        return (
            f"{self.scenario} | {self.policy} | {self.settled_s.shown(1)} | {self.longest_s:.1f} | "
            f"{self.changes_per_min.shown(1)} | {self.changes_settled.shown(1)} | {self.against_oracle}"
        )


def follow(names: Sequence[str], folder: Path, workers: int | None) -> Iterator[str]:
    """A table of every policy through every change. `folder`: of the results of static runs."""
    found: dict[tuple[str, str], list[ChangeRun]] = {}
    for seed in SEEDS:
        worlds = changing(seed)
        oracles = _oracles(worlds, folder, workers)
        for each in worlds:
            for name in names:
                once = _followed(each, name, oracles[each.scenario.name])
                found.setdefault((each.scenario.name, name), []).append(once)
    yield f"After {CHANGE_S:g} s a scenario with N drafters changes: `rtt-N` from a round trip of 10 to 80 ms, `load-N`"
    yield "to three times the clients, `acceptance-N` from 0.9 to 0.5. Policies are as registered, from window 8."
    yield ""
    yield f"{len(SEEDS)} seeds. *Settled*, *longest*: median and maximum of the seconds until nine in ten pairs stay"
    yield "near their last window. Means: *changes* of a pair's window a minute, changes of all pairs *once settled*,"
    yield "*score to oracle*: priced goodput to that of the best static windows before and after the change, of"
    yield f"{', '.join(map(str, WINDOWS))}. Parentheses: 95 % bootstrap intervals over seeds, too narrow with so few."
    yield ""
    rows = (of_all(*key, runs).row for key, runs in found.items())
    yield from table("scenario | policy | settled | longest | changes | once settled | score to oracle", rows)


def of_all(scenario: str, policy: str, runs: Sequence[ChangeRun]) -> ChangeResult:
    settled, per_min, once_settled, to_oracle = zip(*runs, strict=True)
    found = ratio(to_oracle, [1.0] * len(runs))
    changes = mean(per_min), mean(once_settled)
    return ChangeResult(scenario, policy, median(settled), max(settled), *changes, found)


def _oracles(worlds: Sequence[Changing], folder: Path, workers: int | None) -> dict[str, tuple[float, ...]]:
    """Priced goodput of the best static window in each phase, by scenario."""
    cells = {
        each.scenario.name: [
            [static_cell(phase, SLIDING, SLIDING.choice(window)) for window in WINDOWS] for phase in each.phases
        ]
        for each in worlds
    }
    reports = run((cell for phases in cells.values() for row in phases for cell in row), folder, workers)
    return {
        name: tuple(max(reports[cell.key].priced_goodput for cell in row) for row in phases)
        for name, phases in cells.items()
    }


def _followed(changed: Changing, name: str, oracle: tuple[float, ...]) -> ChangeRun:
    start = SLIDING.choice(START)
    policy = POLICIES[name](start)
    ready = cell(changed.scenario, SLIDING, policy, start).scenario
    fleet = make_fleet(ready, FOLDER, LOG_ROOM)
    fleet.policy, fleet.is_watched = policy, True
    fleet.run()
    report, moves = report_of(ready, fleet), moves_of(fleet.world)
    since = changed_s(fleet.world) if any(change.guesses for change in ready.change) else {}
    settled = {pair: settled_s(made, since.get(pair, CHANGE_S)) for pair, made in moves.items()}
    slowest = float(np.quantile([*settled.values()], SLOWEST)) if settled else 0.0
    late = sum(time > since.get(pair, CHANGE_S) + slowest for pair, made in moves.items() for time, _ in made)
    num = sum(map(len, moves.values()))
    minutes = 2 * CHANGE_S / 60 * max(len(moves), 1)
    as_good = float(np.average(oracle, weights=(CHANGE_S, report.virtual_s - CHANGE_S)))
    return ChangeRun(slowest, num / minutes, late, report.priced_goodput / as_good)


def changed_s(world: World) -> Mapping[int, float]:
    """Start of the first answer after the change, by device. With one verifier this is also the number of the pair."""
    requests = world.requests[world.requests["arrival_ms"] >= CHANGE_S * 1000]
    devices = np.unique(requests["device"]).tolist()
    return {device: float(requests["arrival_ms"][requests["device"] == device].min()) / 1000 for device in devices}


def moves_of(world: World) -> Mapping[int, list[tuple[float, int]]]:
    """Time in seconds and window of every decision in the first 2 * CHANGE_S, by pair."""
    logged = world.log[: int(world.clock[0]["num_logged"])]
    found: dict[int, list[tuple[float, int]]] = {}
    for entry in logged[logged["kind"] == STEER].tolist():
        _, pair, _, window, start, _ = entry
        if start <= 2 * CHANGE_S * 1000:
            found.setdefault(pair, []).append((start / 1000, window))
    return found


def settled_s(moves: Sequence[tuple[float, int]], change_s: float) -> float:
    """Seconds from the change until the window stays near its last value; 0 if it already did."""
    last = moves[-1][1]
    band = max(1.0, NEAR * last)
    times = [time for time, _ in moves[1:]]
    away = [until for (_, window), until in zip(moves, times, strict=False) if abs(window - last) > band]
    return max(0.0, max(away, default=0.0) - change_s)
