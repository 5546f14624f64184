"""Build the parts of a model pair into one folder: whole, once, and by one process at a time.

Invariant: at every moment each part folder is absent or whole. A part is built in a hidden folder beside its place, put
on disk, renamed into place and only then listed in the manifest. Whatever an interrupted run left behind is removed by
the next one.
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

Notify: TypeAlias = Callable[[str], None]  # takes one line for whoever is waiting


@dataclass(frozen=True)
class Recipe:
    """How one part is made.

    build(pair_folder, part_folder, notify) fills the empty part_folder and returns the sha256 of each source by name.
    """

    part: str  # the folder's name
    revision: int  # raise it when `build` makes something else than before
    packages: tuple[str, ...]  # distributions whose versions go into the manifest
    build: Callable[[Path, Path, Notify], dict[str, str]]
    needs: str | None = None  # another part that this one is made from


def prepare(folder: Path, recipes: Sequence[Recipe], notify: Notify) -> list[str]:
    """Make each part that is missing, damaged, or made by another revision or from another source; gives their names.

    recipes: a part that others need comes before them. Waits while another process prepares the same folder.
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
        write_manifest(folder, manifest.with_part(recipe.part, entry))


@contextmanager
def _locked(folder: Path, notify: Notify) -> Iterator[None]:
    """The operating system drops the lock when its process ends, however it ends."""
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
