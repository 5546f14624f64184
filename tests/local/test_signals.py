"""How a system is stopped: by its terminal when that closes, and by `--stop`, which waits for a drain."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from services.local import cli, pidfile
from services.local.pair import ModelPair
from services.local.system import SystemPlan

ROOT = Path(__file__).parents[2]
PLAN = SystemPlan(ModelPair("pair", Path("target"), ()))
AT_MOST_S = 30.0
CHILD = "trap 'touch ended; exit' TERM; echo ready; for n in $(seq 1000); do sleep 0.05; done"
SYSTEM = """
import fcntl, sys, termios
from contextlib import asynccontextmanager
from pathlib import Path
from services.local import cli, supervisor
from tests.local.test_signals import CHILD, PLAN

@asynccontextmanager
async def running(plan, run_dir, notify):
    children = supervisor.Supervisor(run_dir / "logs", notify)
    try:
        child = children.start(supervisor.Program("child", ("sh", "-c", CHILD), ready_line="ready"))
        await children.wait_ready(child, 20)
        yield
    finally:
        notify("the last word")
        await children.stop()

if sys.stdin.isatty():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
cli.running = running
cli._run(PLAN, Path("."), "", 1)
"""


def start(folder: Path, terminal: int, command: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """A system with one child, in a session of its own on a terminal; returns when it is ready."""
    process = subprocess.Popen(
        [*command, sys.executable, "-c", SYSTEM],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup themselves
    )
    deadline = time.monotonic() + AT_MOST_S
    while not pidfile.is_ready(folder, process.pid):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def test_closing_the_terminal_ends_the_system_and_its_children(tmp_path: Path) -> None:
    here, there = pty.openpty()
    process = start(tmp_path, there)
    try:
        os.close(there)
        os.close(here)
        assert process.wait(AT_MOST_S) == 0
        assert (tmp_path / "ended").exists()
    finally:
        end(process)


def test_a_system_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    with (tmp_path / "output").open("wb") as output:
        process = start(tmp_path, output.fileno(), ("nohup",))
    try:
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        assert not (tmp_path / "ended").exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(AT_MOST_S) == 0
        assert (tmp_path / "ended").exists()
    finally:
        end(process)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def stop_takes(monkeypatch: pytest.MonkeyPatch, run_dir: Path, seconds: float) -> None:
    """`--stop` of a system that ends so many seconds after SIGTERM."""
    clock, told = Clock(), []
    monkeypatch.setattr(cli, "time", clock)
    monkeypatch.setattr(os, "kill", lambda *args: told.append(args))
    monkeypatch.setattr(pidfile, "running_pid", lambda run_dir: 7 if clock.now_s < seconds else None)
    cli._stop(run_dir)
    assert told == [(7, signal.SIGTERM)]


def test_stopping_waits_as_long_as_the_system_that_runs_may_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve(*args: object) -> None:
        pass

    monkeypatch.setattr(cli, "_serve", serve)
    monkeypatch.setenv("DSD_DRAIN_S", "600")
    cli._run(PLAN, tmp_path, "", 1)
    monkeypatch.delenv("DSD_DRAIN_S")
    stop_takes(monkeypatch, tmp_path, 610)


def test_stopping_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSD_DRAIN_S", raising=False)
    stop_takes(monkeypatch, tmp_path, 85)
    with pytest.raises(typer.Exit):
        stop_takes(monkeypatch, tmp_path, 110)
