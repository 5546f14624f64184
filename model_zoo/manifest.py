"""manifest.json of a prepared pair: the sources and tool versions of each part, and the hash of each file.

Invariant: a part is listed only when it is complete and on disk. A part that is not listed, or differs, is built again.
"""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import version
from pathlib import Path

import msgspec

MANIFEST_FILE = "manifest.json"


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: int
    sha256: str


class PartEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One folder of the pair. sources: sha256 by name of what it was made from. versions: of the tools."""

    revision: int
    sources: dict[str, str]
    versions: dict[str, str]
    files: dict[str, FileEntry]

    def digest(self) -> str:
        """A sha256 of the whole part."""
        lines = [f"{name} {entry.sha256}\n" for name, entry in sorted(self.files.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def is_intact(self, folder: Path) -> bool:
        """Whether `folder` holds every file of the part unchanged."""
        found = ((folder / name, entry) for name, entry in self.files.items())
        return all(
            path.is_file() and path.stat().st_size == entry.size and sha256_of(path) == entry.sha256
            for path, entry in found
        )


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    parts: dict[str, PartEntry] = {}


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a pair; an empty one if it is missing or unreadable."""
    try:
        return msgspec.json.decode((folder / MANIFEST_FILE).read_bytes(), type=Manifest)
    except (FileNotFoundError, msgspec.DecodeError):
        return Manifest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replaces the manifest atomically."""
    new = folder / f".{MANIFEST_FILE}.new"
    new.write_bytes(msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n")
    sync(new)
    new.replace(folder / MANIFEST_FILE)
    sync(folder)


def describe(folder: Path, revision: int, sources: dict[str, str], packages: tuple[str, ...]) -> PartEntry:
    """The entry of the files in `folder`. packages: the distributions whose versions affect them."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return PartEntry(
        revision=revision,
        sources=sources,
        versions={package: version(package) for package in packages},
        files={name: FileEntry(path.stat().st_size, sha256_of(path)) for name, path in files.items()},
    )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Writes a file, or the entries of a folder, to disk before it returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
