"""Staging folders: a folder is built hidden and put in place when it is complete.

Invariant: a staging folder is removed when its owner ends normally. If the owner was killed, the next run finds it by
its name.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_zoo.manifest import sync

_PREFIX = ".building-"


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A hidden folder in `folder`, thus on the same file system. It is removed at the end with its content."""
    place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
    try:
        yield place
    finally:
        shutil.rmtree(place)


def remove_leftovers(folder: Path) -> None:
    """Removes the staging folders in `folder`. No process may be using them."""
    for path in folder.glob(f"{_PREFIX}*"):
        shutil.rmtree(path)


def settle(folder: Path) -> None:
    """Makes a folder readable for all users and writes it to disk."""
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        sync(path)
