"""What all commands of DSD-Sim share: their options, how cells are run for them, and what is told of failures."""

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
from dsd_sim.studies.cells import Cell, complaint
from dsd_sim.studies.report import Report
from dsd_sim.studies.runner import num_cores, progress_shown, run_cells

OUT = Path("results")  # where results go unless said otherwise, in a folder named after the file
Out: TypeAlias = Annotated[
    Path | None, typer.Option(help="Folder for results; cells that it holds are kept.", show_default=f"{OUT}/NAME")
]
Workers: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")]


@contextmanager
def bad_input_told(path: Path) -> Iterator[None]:
    """Ends the program with one line that names the file and the key."""
    try:
        yield
    except (BadScenario, OSError) as error:
        print(complaint(path, error), file=sys.stderr)
        raise typer.Exit(2) from error


def reports_of(cells: Iterable[Cell], folder: Path, workers: int | None) -> dict[str, Report]:
    """By the keys of cells. An interrupt ends the program; started again it goes on."""
    try:
        with progress_shown() as tell:
            reports = run_cells(cells, folder / "cells", workers or num_cores(), tell)
    except KeyboardInterrupt as interrupt:
        print(f"stopped; what is done stays in {folder}, and the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from interrupt
    except BrokenProcessPool as error:
        print("a worker process was killed; fewer --workers need less memory", file=sys.stderr)
        raise typer.Exit(1) from error
    for what, num in Counter(each for report in reports.values() for each in report.unreached).items():
        print(f"{num} of {len(reports)} runs ended before: {what}", file=sys.stderr)
    return reports


def say_written(paths: Iterable[Path]) -> None:
    print(f"written: {', '.join(map(str, paths))}", file=sys.stderr)
