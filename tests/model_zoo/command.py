"""Runs `python -m model_zoo` in this process, to test refusals: a new process takes ten seconds to load torch."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from typer.testing import CliRunner

from model_zoo.__main__ import app


@dataclass(frozen=True)
class Done:
    """The result, as of a process that has ended."""

    returncode: int
    stdout: str
    stderr: str


def model_zoo(*arguments: str) -> Done:
    """Runs a command. Raises what it doesn't catch, and restores the handler of SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        result = CliRunner().invoke(app, arguments)
    finally:
        signal.signal(signal.SIGTERM, before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)
