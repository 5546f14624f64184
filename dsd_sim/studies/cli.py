"""Common parts of DSD-Sim's commands: options, running cells, and error messages."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from dsd_sim.scenario.table import BadScenario
from dsd_sim.studies.cells import Cell, error_line
from dsd_sim.studies.report import SimReport
from dsd_sim.studies.runner import num_cores, run_cells, show_progress

OUT = Path("results")  # default parent of the results' folder, which is named after the input file
Out: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Folder for results. Cells that it already holds are not run again.", show_default=f"{OUT}/NAME"),
]
Workers: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Worker processes.", show_default="one per core")]


@contextmanager
def exit_on_bad_input(path: Path) -> Iterator[None]:
    """On bad input, prints one line that names the file and the key, and ends the program with status 2."""
    try:
        yield
    except (BadScenario, OSError) as error:
        print(error_line(path, error), file=sys.stderr)
        raise typer.Exit(2) from error


def reports_of(cells: Iterable[Cell], folder: Path, workers: int | None) -> dict[str, SimReport]:
    """Runs cells that `folder` does not hold yet; returns all reports by cell key. An interrupt ends the program."""
    try:
        with show_progress() as on_progress:
            reports = run_cells(cells, folder / "cells", workers or num_cores(), on_progress)
    except KeyboardInterrupt as interrupt:
        print(f"stopped; {folder} keeps the finished cells, and the same command continues", file=sys.stderr)
        raise typer.Exit(130) from interrupt
    except BrokenProcessPool as error:
        print("a worker process was killed; if memory is short, lower --workers", file=sys.stderr)
        raise typer.Exit(1) from error
    for what, num in Counter(each for report in reports.values() for each in report.unreached).items():
        print(f"{num} of {len(reports)} runs ended before: {what}", file=sys.stderr)
    return reports


def print_written(paths: Iterable[Path]) -> None:
    print(f"written: {', '.join(map(str, paths))}", file=sys.stderr)
