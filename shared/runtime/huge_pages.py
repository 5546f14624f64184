"""Memory pages: separate ones for sessions, and huge ones for the weights of models (docs/performance.md)."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HUGE = 2 << 20
MADV_COLLAPSE = 25  # Linux 6.1; missing in Python's mmap
LEAST_SHARE = 7 / 8  # of a huge page that must be in memory already, as collapsing fills the rest
PAGEMAP_PRESENT = np.uint64(1 << 63)


def own_pages(num_bytes: int) -> mmap.mmap:
    """Zeros on pages of their own. They take memory from their first use on, until the last view is gone.

    Large allocations on the heap, freed in another order than they were made, would fragment it.
    """
    flags = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    return mmap.mmap(-1, num_bytes, **flags)


def use_huge_pages() -> int:
    """Moves the anonymous memory of this process to huge pages where the system can; returns their number.

    Each step or pass reads all weights. With pages of 4 KiB part of that time goes into TLB misses.
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
    """Addresses of possible huge pages of which nearly all small pages are in memory."""
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
