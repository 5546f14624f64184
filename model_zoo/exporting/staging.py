"""Build a folder out of sight and put it in place whole.

Invariant: what stands in a staging folder is gone when its owner ends in order, and has a name by which the next run
finds it where the owner was killed.
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
    """A hidden folder in `folder`, and so on the same file system, removed at the end with what is still in it."""
    place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
    try:
        yield place
    finally:
        shutil.rmtree(place)


def remove_leftovers(folder: Path) -> None:
    """Removes the staging folders in `folder`; for a caller that knows that nobody works in them."""
    for path in folder.glob(f"{_PREFIX}*"):
        shutil.rmtree(path)


def settle(folder: Path) -> None:
    """Readable for whoever may read the folder, and on disk."""
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        sync(path)
