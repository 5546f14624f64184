"""Where figures come from: command, machine, date, commit, and a digest of code and models.

Invariant: results are stored with their origin. A stored result is reused only while the digest is the same.
"""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.harness.files import ROOT
from shared.runtime.machine import describe_machine

GIT_S = 10.0
PACKAGES = ("awc", "awc_training", "benchmarks", "client", "dsd_sim", "model_zoo", "services", "shared")


def digest_of(models: Path, *more: bytes, packages: Sequence[str] = PACKAGES) -> str:
    """Digest of the code, the models and `more`: everything that determines a figure."""
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted((ROOT / package).rglob("*")):
            if path.suffix in (".py", ".json", ".jsonl", ".npz"):
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    manifest = models / "manifest.json"
    digest.update(manifest.read_bytes() if manifest.is_file() else b"")
    for content in more:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def digest_of_folder(folder: Path) -> bytes:
    """Digest of all files in a folder, with their names; of an absent one that of nothing."""
    digest = hashlib.sha256()
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        digest.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.digest()


def portable_arguments(arguments: Sequence[str]) -> list[str]:
    """Arguments without --folder, and with the last part only of absolute paths, which mean nothing elsewhere."""
    pairs = zip(["", *arguments], arguments, strict=False)  # each argument with the one before it
    return [_portable(each) for before, each in pairs if "--folder" not in (before, each.partition("=")[0])]


def _portable(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else argument


def commit_of(folder: Path = ROOT) -> str:
    """The commit of a working tree, with "-dirty" if files differ from it, but for reports, which benchmarks write.

    Empty where there is none.
    """
    if not (folder / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_S).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/reports")
        return git("rev-parse", "--short=8", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


@dataclass(frozen=True, slots=True)
class Origin:
    """As reports and JSON files hold it. commit: empty in older files."""

    command: str
    machine: str
    date: str
    python: str
    commit: str = ""

    @classmethod
    def here(cls, module: str) -> Origin:
        """Origin of results of this process, started as `python -m module`."""
        return cls(
            command=shlex.join(["python", "-m", module, *portable_arguments(sys.argv[1:])]),
            machine=describe_machine(),
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            python=platform.python_version(),
            commit=commit_of(),
        )
