"""A session's pages go back with it, and what is in memory moves to huge pages."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from shared.runtime import huge_pages as pages
from shared.runtime.huge_pages import HUGE, own_pages, use_huge_pages

if not sys.platform.startswith("linux"):
    pytest.skip("only Linux has them", allow_module_level=True)
NUM = 8


def addresses(room: mmap.mmap) -> set[int]:
    """Of the places for a huge page in it."""
    begin = ctypes.addressof(ctypes.c_char.from_buffer(room))
    first = -(-begin // HUGE) * HUGE
    return set(range(first, begin + len(room) - HUGE + 1, HUGE))


def kib(kind: str) -> int:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def test_own_pages_are_zeros_that_count_when_used_and_go_back_with_their_last_view() -> None:
    before = kib("Rss")
    numbers = np.frombuffer(own_pages(NUM * HUGE), np.uint8)
    assert kib("Rss") - before < HUGE // 1024
    assert not numbers.any()
    numbers[:] = 1
    assert kib("Rss") - before >= (NUM - 1) * HUGE // 1024
    del numbers
    assert kib("Rss") - before < HUGE // 1024


def test_what_is_in_memory_moves_to_huge_pages_and_stays_what_it_was() -> None:
    room = own_pages(NUM * HUGE)
    numbers = np.frombuffer(room, np.uint32)
    numbers[:] = np.arange(len(numbers))
    assert addresses(room) <= set(pages._nearly_full())
    before = kib("AnonHugePages")
    if not use_huge_pages():
        pytest.skip("this system gives none")
    assert kib("AnonHugePages") - before >= (NUM - 2) * HUGE // 1024
    assert np.array_equal(numbers, np.arange(len(numbers)))


def test_what_is_used_in_part_is_left_alone() -> None:
    room = own_pages(NUM * HUGE)
    numbers = np.frombuffer(room, np.uint8)
    numbers[:: 2 * mmap.PAGESIZE] = 1
    assert not addresses(room) & set(pages._nearly_full())


def test_where_the_system_has_no_such_call_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MADV_COLLAPSE", 255)
    assert use_huge_pages() == 0
    monkeypatch.setattr(sys, "platform", "darwin")
    assert use_huge_pages() == 0
