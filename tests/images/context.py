"""The context of a build: which files COPY may take, after .dockerignore.

Invariant: the rules are Docker's, not git's. A pattern starts at the root; `**` stands for any number of folders; the
last of the patterns that match a path or a folder around it decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath


def patterns(text: str) -> list[str]:
    """The lines of a .dockerignore that are patterns."""
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def is_ignored(path: str, ignored: Sequence[str]) -> bool:
    """Whether a path, relative to the root, is kept out."""
    parts, out = PurePosixPath(path).parts, False
    around = [parts[:depth] for depth in range(1, len(parts) + 1)]
    for pattern in ignored:
        names = pattern.removeprefix("!").strip("/").split("/")
        if any(_matches(each, names) for each in around):
            out = not pattern.startswith("!")
    return out


def files(root: Path, source: str, ignored: Sequence[str]) -> list[PurePosixPath]:
    """The files that COPY takes for one source, relative to the root; none where it is absent or ignored."""
    place = root / source
    found = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    paths = [PurePosixPath(path.relative_to(root).as_posix()) for path in found if path.exists()]
    return [path for path in paths if not is_ignored(str(path), ignored)]


def _matches(parts: Sequence[str], names: Sequence[str]) -> bool:
    if not names:
        return not parts
    if names[0] == "**":
        return any(_matches(parts[depth:], names[1:]) for depth in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], names[0]) and _matches(parts[1:], names[1:])
