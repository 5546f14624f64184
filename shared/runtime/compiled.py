"""The cache folder of numba.

numba checks the age of a compiled function's own file, not of the functions that it calls in other files. So the cache
folder is named after a hash of all folders with lines and constants that are compiled.

Of two processes that save different signatures of a function at once, numba gives the file of one the content of the
other, and later calls are wrong without an error. So one process compiles at a time; others then load what it saved.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

import numba
from numba.core import event

from shared.runtime.home import home

FOLDERS = (
    "dsd_sim/engine",
    "dsd_sim/steering",
    "awc",
    "shared",
    "services/cloud_verifier",
)  # a role's installation has some of them


def keep_compiled() -> bool:
    """Sets the cache folder; returns False if there is none to write to. Call it before compiling with `cache`."""
    try:
        folder = home() / "compiled" / _digest()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home, as in a container
        return False
    setattr(numba.config, "CACHE_DIR", str(folder))  # noqa: B010  typed as if it were fixed
    if not os.access(folder, os.W_OK):
        return False
    _take_turns(folder)
    return True


@cache
def _take_turns(folder: Path) -> None:
    event.register("numba:compiler_lock", _FolderLock(folder / "lock"))  # type: ignore[no-untyped-call]


class _FolderLock(event.Listener):
    """Locks a file while this process compiles, or loads or saves what is compiled."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = threading.RLock()  # numba tells of a thread before it has numba's own lock
        self._depth = 0  # of compilations within others
        self._file: IO[bytes] | None = None

    def on_start(self, event: event.Event) -> None:
        self._thread.acquire()
        self._depth += 1
        if self._depth == 1:
            with suppress(OSError):  # the folder was removed: nothing is kept there
                self._file = self._path.open("ab")
                fcntl.flock(self._file, fcntl.LOCK_EX)

    def on_end(self, event: event.Event) -> None:
        self._depth -= 1
        if self._depth == 0 and self._file is not None:
            self._file.close()
            self._file = None
        self._thread.release()


def _digest() -> str:
    root = Path(__file__).parents[2]
    files = sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    content = (str(path.relative_to(root)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(b"".join(content)).hexdigest()[:16]
