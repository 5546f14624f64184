"""manifest.json of a prepared pair: what each part was made from, with which versions, and the hash of each file.

Invariant: a part is listed only after it is whole and on disk, so what isn't listed, or differs, is to be built again.
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
    """One folder of the pair. sources: what it was made from, by name, with its sha256; versions: of the tools."""

    revision: int
    sources: dict[str, str]
    versions: dict[str, str]
    files: dict[str, FileEntry]

    def digest(self) -> str:
        """One sha256 for the content of the whole part."""
        lines = [f"{name} {entry.sha256}\n" for name, entry in sorted(self.files.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def is_intact(self, folder: Path) -> bool:
        """Whether `folder` holds every file of the part, unchanged."""
        return all(_is_intact(folder / name, entry) for name, entry in self.files.items())


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    parts: dict[str, PartEntry] = {}

    def with_part(self, name: str, entry: PartEntry) -> Manifest:
        return Manifest({**self.parts, name: entry})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a pair; an empty one where there is none, or none that this version can read."""
    try:
        return msgspec.json.decode((folder / MANIFEST_FILE).read_bytes(), type=Manifest)
    except (FileNotFoundError, msgspec.DecodeError):
        return Manifest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest in one step: a reader sees the old one or the new one."""
    new = folder / f".{MANIFEST_FILE}.new"
    new.write_bytes(msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n")
    sync(new)
    new.replace(folder / MANIFEST_FILE)
    sync(folder)


def describe(folder: Path, revision: int, sources: dict[str, str], packages: tuple[str, ...]) -> PartEntry:
    """The entry for the files in `folder`; packages: the distributions whose versions shaped them."""
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
    """Have the file, or the folder's list of names, on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_intact(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.size and sha256_of(path) == entry.sha256
