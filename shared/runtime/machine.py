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
from typing import Literal

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
ID_DIGITS = 16  # hexadecimal
CPU_INFO = Path("/proc/cpuinfo")


def describe_machine() -> str:
    """Cores, processor, memory, system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cores} cores of {_processor()}, {memory_gib:.0f} GiB, {platform.system()}"


def fast_dtype() -> Literal["bfloat16", "float32"]:
    """In which the processor multiplies matrices faster: bfloat16 if it has instructions for it."""
    return "bfloat16" if re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", _cpu_info()) else "float32"


@cache
def machine_id() -> str:
    """A digest of the kernel's boot id, which the containers of a host share, or of host name and network address."""
    try:
        known = BOOT_ID.read_text()
    except OSError:
        known = f"{socket.gethostname()} {uuid.getnode()}"
    return hashlib.sha256(known.encode()).hexdigest()[:ID_DIGITS]


def _cpu_info() -> str:
    """Empty where the system has none."""
    try:
        return CPU_INFO.read_text()
    except OSError:
        return ""


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _cpu_info(), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
