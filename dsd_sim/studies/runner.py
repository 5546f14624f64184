"""Runs cells on all cores, and keeps the result of each in a file of its own.

Invariant: a file of a result is whole or not there, and holds the bytes that `run` reports. What is there is not
computed again, so a run that was stopped goes on where it was; and no worker outlives it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dsd_sim.scenario.build import make_fleet
from dsd_sim.scenario.table import BadScenario
from dsd_sim.studies.cells import Cell, complaint
from dsd_sim.studies.report import Report, report_of

Tell: TypeAlias = Callable[[int, int], None]  # how many cells are done, and of how many


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_cells(cells: Iterable[Cell], folder: Path, num_workers: int, tell: Tell) -> dict[str, Report]:
    """Reports by the keys of cells. Raises BadScenario for one that can't be run, after that of others is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {cell.key: cell for cell in cells}
    kept = {key: _kept(_path_of(folder, key)) for key in wanted}
    found = {key: report for key, report in kept.items() if report is not None}
    tell(len(found), len(wanted))

    def take(key: str) -> None:
        found[key] = msgspec.json.decode(_path_of(folder, key).read_bytes(), type=Report)
        tell(len(found), len(wanted))

    missing = [cell for key, cell in wanted.items() if key not in found]
    if missing:
        _compute(missing, folder, num_workers, take)
    return found


def _path_of(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def _kept(path: Path) -> Report | None:
    """The result of an earlier run; None where there is none, or one of another form."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _compute(cells: Sequence[Cell], folder: Path, num_workers: int, take: Callable[[str], None]) -> None:
    """In worker processes; `take` is called for each result. Whatever goes wrong, none of them is left behind."""
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(num_workers, len(cells)), spawn, initializer=_end_with_parent)
    try:
        with _children_deaf_to_interrupts():
            runs = {pool.submit(_run, cell, folder): cell for cell in cells}
        for run in as_completed(runs):
            run.result()
            take(runs[run].key)
    except BaseException:
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _children_deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal; those that are started within leave it to this one."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """In a worker: a parent that was killed can't end it, so it watches out for that itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(cell: Cell, folder: Path) -> None:
    """In a worker: computes a cell and writes its result."""
    try:
        fleet = make_fleet(cell.scenario, cell.path.parent)
    except (BadScenario, OSError) as error:
        raise BadScenario(complaint(cell.path, error, cell.told)) from error
    if cell.policy is not None:
        fleet.policy, fleet.is_watched = cell.policy, True
    fleet.run()
    write_whole(_path_of(folder, cell.key), report_of(cell.scenario, fleet).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Whoever reads the file finds all of it or none."""
    begun = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        begun.write_bytes(content)
        begun.replace(path)
    finally:
        begun.unlink(missing_ok=True)


@contextmanager
def progress_shown() -> Iterator[Tell]:
    """A bar on a terminal, else a line for every tenth of the cells."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _tenths()
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:

        def tell(num_done: int, num: int) -> None:
            if progress.task_ids:
                progress.update(progress.task_ids[0], completed=num_done)
            else:
                progress.add_task("cells", total=num, completed=num_done)

        yield tell


def _tenths() -> Tell:
    told = -1

    def tell(num_done: int, num: int) -> None:
        nonlocal told
        if 10 * num_done // num > told:
            told = 10 * num_done // num
            print(f"{num_done} of {num} cells are done", file=sys.stderr, flush=True)

    return tell
