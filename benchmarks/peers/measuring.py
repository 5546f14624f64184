"""Measures cells in the order of the plan, within a budget of time.

Invariant: after each round the cell's file holds all rounds so far, so a run that is stopped goes on with the next
round. Rounds of other code, machines, models, prompts or choices are dropped. A system that fails in a cell is in none
of the cells behind it, and each says so.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from benchmarks.harness.cell import RunningCell
from benchmarks.harness.files import write_result
from benchmarks.harness.origin import Origin
from benchmarks.harness.prompts import DEFAULT_PROMPTS
from benchmarks.peers import serving
from benchmarks.peers.asking import ask_all
from benchmarks.peers.cells import MIN_ROUNDS, START_S, Cell, estimated_s, num_starts
from benchmarks.peers.prompts import prompts_of_round
from benchmarks.peers.results import CellResult, path_of, read_cell
from benchmarks.peers.serving import Starting, Way
from benchmarks.peers.systems import System
from model_zoo.prompt_file import read_prompts

MAX_VOID_ROUNDS = 3  # in a row: then something is always computing, and the cell waits for the next run
WARM_UP_ROUND = 1000  # number of the round whose prompts warm up a cell's first one
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
    failed: dict[str, str] = field(default_factory=dict)  # in this run: systems, and why

    def started(self, cell: Cell) -> CellResult:
        """The rounds that the folder has of a cell, or none."""
        asked = [system for system in self.systems if cell.takes_part(system)]
        found, names = read_cell(cell, self.folder), {system.name for system in asked}
        is_of_this_run = found is not None and (found.cell, found.inputs) == (cell, self.inputs)
        goes_on = found and is_of_this_run and not found.complaints and names == found.all_names
        begun = found if found and goes_on else CellResult(cell, asked, self.versions, self.inputs, self.origin)
        if not begun.is_finished:
            for name in (self.failed.keys() & names) - begun.failed.keys():
                begun = begun.without(name, self.failed[name])
        return begun

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
    async with serving.peers(start, run.systems) as (peers, failed):
        run.failed.update(failed)
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
    voids = result.voids

    def void(why: str) -> None:
        notify(f"{cell.name}: void: {why}")
        voids.append(why)

    def stop_all() -> None:
        for way in running.values():
            way.server.stop()

    for each in watched:
        each.begin()
    while not is_enough(len(result.rounds), num_new, time.monotonic() - started, seconds, cell, len(result.systems)):
        number = len(result.rounds)
        order = random.Random(f"{run.seed} {cell.name} {number} {len(voids)}")
        prompts = prompts_of_round(run.prompts[cell.prompt_tokens], cell, number, run.seed)
        warm_up = warm_up_of(run, cell, is_first=num_new == 0)
        ways = {system.name: running[system.name] for system in result.systems}
        answers = await ask_all(ways, prompts, warm_up, cell, order, void, stop_all, may_be_busy=run.may_be_busy)
        if answers is not None:
            for name in ways.keys() - answers.keys():
                run.failed[name] = next(why for why in reversed(voids) if why.startswith(f"{name}:"))
                result = result.without(name, run.failed[name])
                notify(f"{cell.name}: goes on without {run.failed[name]}")
            result.rounds.append(answers)
            num_new, num_void = num_new + 1, 0
            notify(f"{cell.name}: round {len(result.rounds)}")
        elif (num_void := num_void + 1) > MAX_VOID_ROUNDS:
            notify(f"{cell.name}: {num_void} void rounds in a row, the same command tries again")
            write_result(path_of(cell, run.folder), result)
            return
        write_result(path_of(cell, run.folder), result)
    result.complaints.extend(text for each in watched for text in each.complaints())
    result.complaints.extend([BUSY] if run.may_be_busy else [])
    for complaint in result.complaints[:5]:
        notify(f"{cell.name}: void: {complaint}")
    write_result(path_of(cell, run.folder), replace(result, is_finished=True))


def warm_up_of(run: Run, cell: Cell, *, is_first: bool) -> list[str]:
    """Prompts of the answers before a round: short ones, and once in a cell one of its own length."""
    own = prompts_of_round(run.prompts[cell.prompt_tokens], cell, WARM_UP_ROUND, run.seed)[:1] if is_first else []
    return own + read_prompts(DEFAULT_PROMPTS)[-cell.num_clients :][len(own) :]


def is_enough(num_rounds: int, num_new: int, passed_s: float, seconds: float, cell: Cell, num_systems: int) -> bool:
    """Whether the cell has all its rounds, or no time for another one like those so far. Pure."""
    if num_rounds >= cell.num_rounds:
        return True
    mean_s = passed_s / num_new if num_new else cell.round_s(num_systems)
    return num_rounds >= min(MIN_ROUNDS, cell.num_rounds) and passed_s + mean_s > seconds
