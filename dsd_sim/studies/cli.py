"""Common parts of DSD-Sim's commands: options, running cells, and error messages."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeAlias

import numba
import typer

from dsd_sim.scenario.build import make_fleet
from dsd_sim.scenario.scenario import Scenario
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
SMALLEST = {  # a scenario that calls what every run calls
    "name": "smallest",
    "workload": {"kind": "closed", "num_clients": 1, "num_requests": 2, "lengths": {"prompt": 8, "answer": 64}},
    "edge": (
        {
            "count": 1,
            "times": {"step_ms": 10.0},
            "link": {"rtt_ms": 10.0},
            "guesses": {"kind": "independent", "rate": 0.8},
        },
    ),
    "cloud": ({"count": 1, "times": {"base_ms": 40.0}},),
    "policies": {"windows": "adaptive"},
}


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
    compile_now()
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


def compile_now() -> None:
    """Compiles the event loop if that was not done before, and says so: otherwise every worker would, in silence."""
    if any(Path(numba.config.CACHE_DIR).rglob("kernel.run-*.nbi")):  # type: ignore[attr-defined]
        return
    print("compiling the event loop, once for this version; this takes a core a minute …", file=sys.stderr, flush=True)
    started = time.perf_counter()
    make_fleet(Scenario.model_validate(SMALLEST), Path()).run()
    print(f"compiled in {time.perf_counter() - started:.0f} s", file=sys.stderr)


def print_written(paths: Iterable[Path]) -> None:
    print(f"written: {', '.join(map(str, paths))}", file=sys.stderr)
