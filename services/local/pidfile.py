"""The pid file of the running local system.

Invariant: the lock on the file, not its existence, says that a system runs. The lock ends with the process.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class AlreadyRunning(Exception):
    """Another system holds the run folder."""


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Locks the run folder for this process. Raises AlreadyRunning."""
    with (run_dir / "services.pid").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(_message(run_dir)) from None
        _write(file.fileno(), f"{os.getpid()} starting\n")
        try:
            yield
        finally:
            _write(file.fileno(), "")


def check_free(run_dir: Path) -> None:
    """Raises AlreadyRunning if the run folder is locked."""
    if running_pid(run_dir) is not None:
        raise AlreadyRunning(_message(run_dir))


def mark_ready(run_dir: Path) -> None:
    """Notes that this process, which holds the lock, is ready."""
    (run_dir / "services.pid").write_text(f"{os.getpid()} ready\n", encoding="utf-8")


def is_ready(run_dir: Path, pid: int) -> bool:
    path = run_dir / "services.pid"
    return path.exists() and path.read_text(encoding="utf-8").split() == [str(pid), "ready"]


def running_pid(run_dir: Path) -> int | None:
    """The process that holds the lock, if any."""
    path = run_dir / "services.pid"
    if not path.exists():
        return None
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_pid(run_dir)
    return None


def _message(run_dir: Path) -> str:
    return f"a system runs already (process {_read_pid(run_dir)}): stop it first"


def _read_pid(run_dir: Path) -> int | None:
    words = (run_dir / "services.pid").read_text(encoding="utf-8").split()
    return int(words[0]) if words else None


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, text.encode())
