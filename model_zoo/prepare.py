"""Builds the parts of a model pair in one folder, each once and by one process at a time.

Invariant: each part folder is absent or complete at any time. A part is built in a hidden folder, written to disk,
renamed into place and then listed in the manifest. The next run removes what an interrupted run left behind.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from model_zoo.exporting.staging import remove_leftovers, settle, staging
from model_zoo.manifest import Manifest, describe, read_manifest, sync, write_manifest

_LOCK_FILE = ".lock"

Notify: TypeAlias = Callable[[str], None]  # shows one line of progress


@dataclass(frozen=True)
class Recipe:
    """How to make one part.

    build(pair_folder, part_folder, notify) fills the empty part_folder and returns the sha256 of each source by name.
    """

    part: str  # the folder's name
    revision: int  # increment it when the result of `build` changes
    packages: tuple[str, ...]  # distributions whose versions the manifest lists
    build: Callable[[Path, Path, Notify], dict[str, str]]
    needs: str | None = None  # the part that this one is made from


def prepare(folder: Path, recipes: Sequence[Recipe], notify: Notify) -> list[str]:
    """Makes each part that is missing, damaged or outdated (other revision or source), and returns their names.

    recipes: a part comes before those that need it. Waits while another process prepares the same folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, notify):
        remove_leftovers(folder)
        built = []
        for recipe in recipes:
            if not _is_current(folder, recipe, read_manifest(folder)):
                _build(folder, recipe, notify)
                built.append(recipe.part)
        return built


def _is_current(folder: Path, recipe: Recipe, manifest: Manifest) -> bool:
    entry = manifest.parts.get(recipe.part)
    if entry is None or entry.revision != recipe.revision:
        return False
    if recipe.needs is not None and entry.sources.get(recipe.needs) != manifest.parts[recipe.needs].digest():
        return False
    return entry.is_intact(folder / recipe.part)


def _build(folder: Path, recipe: Recipe, notify: Notify) -> None:
    with staging(folder) as hidden:
        made = hidden / "made"
        made.mkdir()
        sources = recipe.build(folder, made, notify)
        manifest = read_manifest(folder)
        if recipe.needs is not None:
            sources = {**sources, recipe.needs: manifest.parts[recipe.needs].digest()}
        notify("checking and storing")
        entry = describe(made, recipe.revision, sources, recipe.packages)
        settle(made)
        place = folder / recipe.part
        if place.exists():
            place.rename(hidden / "replaced")
        made.rename(place)
        sync(folder)
        write_manifest(folder, Manifest({**manifest.parts, recipe.part: entry}))


@contextmanager
def _locked(folder: Path, notify: Notify) -> Iterator[None]:
    """Locks the folder. The operating system releases the lock when the process ends."""
    descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify("waiting for another process that prepares the same models")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
