"""Where figures come from: machine, command, date. Figures are written down with these or not at all."""

from __future__ import annotations

import platform
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

from shared.machine import describe_machine


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
            command=shlex.join(["python", "-m", module, *sys.argv[1:]]),
            machine=describe_machine(),
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            python=platform.python_version(),
        )
