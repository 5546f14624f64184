"""Runs cells in worker processes and keeps each result in a file.

Invariant: a result's file is complete or absent, and holds the bytes that `run --json` prints. A cell with a file is
not run again, so a stopped study continues. No worker outlives the runner.
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

from dsd_sim.studies.cells import Cell, fleet_of, run_fleet
from dsd_sim.studies.report import SimReport

OnProgress: TypeAlias = Callable[[int, int], None]  # finished cells, all cells


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_cells(cells: Iterable[Cell], folder: Path, num_workers: int, on_progress: OnProgress) -> dict[str, SimReport]:
    """Reports by cell key. Raises BadScenario for a cell that can't be run; finished cells stay in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {cell.key: cell for cell in cells}
    kept = {key: _kept(_path_of(folder, key)) for key in wanted}
    found = {key: report for key, report in kept.items() if report is not None}
    on_progress(len(found), len(wanted))

    def take(key: str) -> None:
        found[key] = msgspec.json.decode(_path_of(folder, key).read_bytes(), type=SimReport)
        on_progress(len(found), len(wanted))

    missing = [cell for key, cell in wanted.items() if key not in found]
    if missing:
        _compute(missing, folder, num_workers, take)
    return found


def _path_of(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def _kept(path: Path) -> SimReport | None:
    """The result of an earlier run; None if there is none, or one of another format."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=SimReport)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _compute(cells: Sequence[Cell], folder: Path, num_workers: int, take: Callable[[str], None]) -> None:
    """Runs cells in worker processes, and calls `take` with the key of each result. On an error it ends the workers."""
    others = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(num_workers, len(cells)), spawn, initializer=_end_with_parent)
    try:
        with _interrupts_blocked_in_children():
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
def _interrupts_blocked_in_children() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal; workers that start within ignore it, as the parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Ends a worker when its parent dies; a killed parent can't do it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(cell: Cell, folder: Path) -> None:
    """Runs a cell in a worker and writes its result."""
    write_atomically(_path_of(folder, cell.key), run_fleet(cell, fleet_of(cell)).encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that readers find all of it or none."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def show_progress() -> Iterator[OnProgress]:
    """Shows a progress bar on a terminal; elsewhere prints a line for every tenth of the cells."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_tenths()
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:

        def update(num_done: int, num: int) -> None:
            if progress.task_ids:
                progress.update(progress.task_ids[0], completed=num_done)
            else:
                progress.add_task("cells", total=num, completed=num_done)

        yield update


def _print_tenths() -> OnProgress:
    num_tenths = -1

    def update(num_done: int, num: int) -> None:
        nonlocal num_tenths
        if 10 * num_done // num > num_tenths:
            num_tenths = 10 * num_done // num
            print(f"{num_done} of {num} cells are done", file=sys.stderr, flush=True)

    return update
