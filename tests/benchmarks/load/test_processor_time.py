"""A round is void if anything but the measured system and the client computed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from benchmarks.load import processor_time
from benchmarks.load.processor_time import ProcessorTime, busy_s, foreign_share, is_void

BUSY = "import time\nend = time.monotonic() + 0.4\nwhile time.monotonic() < end: pass"


def test_the_share_is_busy_time_that_is_not_the_systems_own_by_time_passed() -> None:
    before, after = ProcessorTime(10, busy_s=100, own_s=50), ProcessorTime(14, busy_s=107, own_s=56.6)
    assert foreign_share(before, after) == pytest.approx(0.1)
    assert foreign_share(before, ProcessorTime(14, busy_s=106, own_s=57)) == 0  # ticks are sampled


def test_more_than_a_twentieth_of_a_core_makes_it_void_and_ticks_are_allowed_for() -> None:
    assert not is_void(0.05, 100)
    assert is_void(0.052, 100)
    assert not is_void(0.09, 1)
    assert is_void(0.11, 1)


def test_stolen_time_is_busy_and_waiting_is_not() -> None:
    user, system, idle, iowait, steal = 200, 100, 700, 300, 100
    line = f"cpu  {user} 0 {system} {idle} {iowait} 0 0 {steal} 50 0"
    assert busy_s(line) * processor_time.TICKS_PER_S == user + system + steal


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="reads /proc")
def test_a_process_of_the_group_is_own_time_and_another_is_not() -> None:
    before, started = processor_time.read([]), time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", BUSY + "\ninput()"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        while processor_time.read([child.pid]).own_s - before.own_s < 0.3 and time.monotonic() - started < 60:
            pass
        mine, others = processor_time.read([child.pid]), processor_time.read([])
    finally:
        child.communicate(b"\n")
    assert mine.own_s - others.own_s >= 0.05
    assert mine.busy_s - before.busy_s >= 0.1
