"""Measures cells in the order of the plan, within a budget of time.

Invariant: after each round the cell's file holds all rounds so far, so a run that is stopped goes on with the next
round. Rounds of other code, models, prompts or choices are dropped.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from benchmarks.harness.cell import RunningCell
from benchmarks.harness.files import write_result
from benchmarks.harness.origin import Origin
from benchmarks.peers import serving
from benchmarks.peers.asking import ask_all
from benchmarks.peers.cells import MIN_ROUNDS, START_S, Cell, estimated_s, num_starts
from benchmarks.peers.prompts import prompts_of_round
from benchmarks.peers.results import CellResult, path_of, read_cell
from benchmarks.peers.serving import Starting, Way
from benchmarks.peers.systems import System

MAX_VOID_ROUNDS = 3  # of a cell: then something is always computing
BUSY = "other programs were allowed to compute"


@dataclass(frozen=True, slots=True)
class Run:
    """What all cells have in common. prompts: by length."""

    systems: Sequence[System]
    prompts: Mapping[int, Sequence[str]]
    versions: dict[str, str]
    inputs: str
    origin: Origin
    folder: Path
    seed: int
    may_be_busy: bool = False

    def started(self, cell: Cell) -> CellResult:
        """The rounds that the folder has of a cell, or none."""
        systems = [system for system in self.systems if cell.takes_part(system)]
        empty = CellResult(cell, systems, self.versions, self.inputs, self.origin)
        found = read_cell(cell, self.folder)
        is_same = found is not None and (found.cell, found.systems, found.inputs) == (cell, systems, self.inputs)
        if found is None or not is_same or found.complaints:
            return empty
        return replace(found, origin=self.origin)

    def unfinished(self, plan: Sequence[Cell]) -> list[Cell]:
        return [cell for cell in plan if not self.started(cell).counts]


class Budget:
    """Divides the time that is left among the cells that are left, in proportion to their estimates. Pure."""

    def __init__(self, seconds: float, cells: Sequence[Cell], systems: Sequence[System], now: float) -> None:
        self._ends_at = now + seconds
        self._cells = list(cells)
        self._systems = systems

    def is_over(self, now: float) -> bool:
        return now >= self._ends_at

    def share_s(self, cell: Cell, now: float) -> float:
        """Seconds for this cell, which is then no longer left. Later starts are set aside."""
        weights = {each: estimated_s(each, self._systems) for each in self._cells}
        self._cells.remove(cell)
        later = [each for each in self._cells if each.rtt_ms != cell.rtt_ms]
        ours = [system for system in self._systems if system.engine]
        left_s = self._ends_at - now - START_S * num_starts(later, ours)
        return max(0.0, left_s * weights[cell] / sum(weights.values()))


async def measure_all(run: Run, start: Starting, todo: Sequence[Cell], budget_s: float) -> None:
    """Starts what the unfinished cells need, and measures them."""
    budget = Budget(budget_s, todo, run.systems, time.monotonic())
    async with serving.peers(start, run.systems) as peers:
        for rtt_ms, cells in groupby(todo, key=lambda cell: cell.rtt_ms):
            if budget.is_over(time.monotonic()):
                return
            async with serving.ours(start, run.systems, rtt_ms) as (ours, watched):
                for cell in cells:
                    if budget.is_over(time.monotonic()):
                        start.notify("the budget is used up: the same command goes on")
                        return
                    share_s = budget.share_s(cell, time.monotonic())
                    start.notify(f"{cell}: {share_s:.0f} s")
                    await measure_cell(run, cell, peers | ours, watched, share_s, start.notify)


async def measure_cell(
    run: Run,
    cell: Cell,
    running: Mapping[str, Way],
    watched: Sequence[RunningCell],
    seconds: float,
    notify: Callable[[str], None],
) -> None:
    """Rounds until the time is used or the cell has them all, at least MIN_ROUNDS. Writes the cell's file."""
    result, started = run.started(cell), time.monotonic()
    num_new = num_void = 0

    def void(why: str) -> None:
        notify(f"{cell.name}: void: {why}")
        result.voids.append(why)

    ways = {system.name: running[system.name] for system in result.systems}
    for each in watched:
        each.begin()
    while not is_enough(len(result.rounds), num_new, time.monotonic() - started, seconds, cell):
        number = len(result.rounds)
        order = random.Random(f"{run.seed} {cell.name} {number} {len(result.voids)}")
        prompts = prompts_of_round(run.prompts[cell.prompt_tokens], cell, number, run.seed)
        answers = await ask_all(ways, prompts, cell, order, void, may_be_busy=run.may_be_busy)
        if answers is not None:
            result.rounds.append(answers)
            num_new += 1
            notify(f"{cell.name}: round {len(result.rounds)}")
        elif (num_void := num_void + 1) > MAX_VOID_ROUNDS:
            result.complaints.append(f"{num_void} void rounds: {result.voids[-1]}")
            break
        write_result(path_of(cell, run.folder), result)
    result.complaints.extend(text for each in watched for text in each.complaints())
    result.complaints.extend([BUSY] if run.may_be_busy else [])
    for complaint in result.complaints[:5]:
        notify(f"{cell.name}: void: {complaint}")
    write_result(path_of(cell, run.folder), replace(result, is_finished=True))


def is_enough(num_rounds: int, num_new: int, passed_s: float, seconds: float, cell: Cell) -> bool:
    """Whether the cell has all its rounds, or no time for another one like those so far. Pure."""
    if num_rounds >= cell.num_rounds:
        return True
    mean_s = passed_s / num_new if num_new else cell.round_s(1)
    return num_rounds >= min(MIN_ROUNDS, cell.num_rounds) and passed_s + mean_s > seconds
