"""This machine: a description for figures that were measured on it, and an id that all services on it share.

Invariant: the id tells nothing but that two services share a machine.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
import uuid
from functools import cache
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
ID_DIGITS = 16  # hexadecimal


def describe_machine() -> str:
    """Cores, processor, memory, system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cores} cores of {_processor()}, {memory_gib:.0f} GiB, {platform.system()}"


@cache
def machine_id() -> str:
    """A digest of the kernel's boot id, which the containers of a host share, or of host name and network address."""
    try:
        known = BOOT_ID.read_text()
    except OSError:
        known = f"{socket.gethostname()} {uuid.getnode()}"
    return hashlib.sha256(known.encode()).hexdigest()[:ID_DIGITS]


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
