"""Where figures come from: machine, command, date, and the code and models that made them. Figures are written down
with the first three or not at all, and kept for a later run only while the code and the models are the same."""

from __future__ import annotations

import hashlib
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from shared.runtime.machine import describe_machine

ROOT = Path(__file__).parents[2]


def digest_of(models: Path, *more: bytes) -> str:
    """Of the code that runs and is simulated, of the models, and of whatever else figures follow from: a result of
    others says nothing about these."""
    digest = hashlib.sha256()
    for package in ("awc", "benchmarks", "dsd_sim", "model_zoo", "services", "shared"):
        for path in sorted((ROOT / package).rglob("*.py*")):
            if path.suffix in (".py", ".jsonl"):
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    manifest = models / "manifest.json"
    digest.update(manifest.read_bytes() if manifest.is_file() else b"")
    for content in more:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def without_places(arguments: Sequence[str]) -> list[str]:
    """Arguments without the folder that results go to, and of other absolute paths only their last part: where files
    lie on one machine says nothing to readers on others."""
    kept: list[str] = []
    is_folder = False
    for argument in arguments:
        if not is_folder and not argument.startswith("--folder="):
            kept.append(_name_of(argument))
        is_folder = argument == "--folder"
        if is_folder:
            kept.pop()
    return kept


def _name_of(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else argument


@dataclass(frozen=True, slots=True)
class Origin:
    """As it goes into reports and JSON files."""

    command: str
    machine: str
    date: str
    python: str

    @classmethod
    def here(cls, module: str) -> Origin:
        """Of this process, started as `python -m module`."""
        return cls(
            command=shlex.join(["python", "-m", module, *without_places(sys.argv[1:])]),
            machine=describe_machine(),
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            python=platform.python_version(),
        )
