"""Where figures come from: machine, command, date. Figures are written down with these or not at all."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


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


def describe_machine() -> str:
    """Cores, processor, memory, system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cores} cores of {_processor()}, {memory_gib:.0f} GiB, {platform.system()}"


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
