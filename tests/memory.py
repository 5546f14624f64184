"""Memory that a call takes: a measure of its work that does not depend on the machine."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable


def peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes that Python and numpy allocate during the call, beyond those before it."""
    return _measured(call)[0]


def held_bytes(call: Callable[[], object]) -> int:
    """Bytes that are allocated after the call and were not before it."""
    return _measured(call)[1]


def _measured(call: Callable[[], object]) -> tuple[int, int]:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call()
        after, peak = tracemalloc.get_traced_memory()
        return peak - before, after - before
    finally:
        tracemalloc.stop()
