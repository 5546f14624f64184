"""Pages of memory: a session's own, and huge ones for the weights of models (docs/performance.md)."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HUGE = 2 << 20
MADV_COLLAPSE = 25  # Linux 6.1; Python's mmap doesn't have it yet
LEAST_SHARE = 7 / 8  # of a huge page that must be in memory: the rest of it takes memory afterwards
PAGEMAP_PRESENT = np.uint64(1 << 63)


def own_pages(num_bytes: int) -> mmap.mmap:
    """Zeros on pages that nothing else is on: they count from their first use on, and go back to the system with the
    last view of them. Among other allocations, freed in another order than they were made, large ones leave holes that
    stay."""
    flags = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    return mmap.mmap(-1, num_bytes, **flags)


def use_huge_pages() -> int:
    """Moves what this process has in memory, and in no file, to huge pages where the system can; returns how many.

    Weights are read as a whole in each step or pass: with pages of 4 KiB a processor spends part of that time looking
    them up.
    """
    if not sys.platform.startswith("linux"):
        return 0
    try:
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        return sum(madvise(address, HUGE, MADV_COLLAPSE) == 0 for address in list(_nearly_full()))
    except (AttributeError, OSError):  # no such function, or no /proc
        return 0


def _nearly_full() -> Iterator[int]:
    """Addresses where a huge page would be, and nearly all of its small ones are in memory."""
    num_each = HUGE // mmap.PAGESIZE
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            extent, rights, _, _, inode, *name = line.split(maxsplit=5)
            begin, end = (int(bound, 16) for bound in extent.split("-"))
            first, last = -(-begin // HUGE), end // HUGE
            if rights != "rw-p" or inode != "0" or name not in ([], ["[heap]"]) or first >= last:
                continue
            pagemap.seek(first * num_each * 8)
            entries = np.frombuffer(pagemap.read((last - first) * num_each * 8), np.uint64)
            shares = ((entries & PAGEMAP_PRESENT) != 0).reshape(-1, num_each).mean(axis=1)
            for place in np.flatnonzero(shares >= LEAST_SHARE).tolist():
                yield (first + place) * HUGE
