"""A server's processes compute only while it is asked."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest

from benchmarks.load import processor_time
from benchmarks.peers.server import Server, serving
from services.local.supervisor import Program

BUSY = Program("busy", (sys.executable, "-c", "print('up', flush=True)\nwhile True: pass"), ready_line="up")
WAIT_S = 60.0


def own_s(server: Server) -> float:
    return processor_time.read(server.groups).own_s - processor_time.read([]).own_s


def state_of(pid: int) -> str | None:
    """As /proc has it: T is stopped; None: it has ended."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] if stat.exists() else None


def wait_until_stopped(pid: int) -> None:
    """A process stops when it next enters the kernel."""
    ends_at = time.monotonic() + WAIT_S
    while state_of(pid) != "T":
        assert time.monotonic() < ends_at


async def test_a_server_computes_within_resumed_only_and_is_gone_at_the_end(tmp_path: Path) -> None:
    async with serving(BUSY, 1, WAIT_S, tmp_path, print) as server:
        (pid,) = server.groups
        wait_until_stopped(pid)
        before, ends_at = own_s(server), time.monotonic() + WAIT_S
        with server.resumed():
            while own_s(server) < before + 0.1:
                assert time.monotonic() < ends_at
        wait_until_stopped(pid)
    assert state_of(pid) is None


async def test_a_server_that_ended_is_no_error_for_those_who_stop_it(tmp_path: Path) -> None:
    async with serving(BUSY, 1, WAIT_S, tmp_path, print) as server:
        pass
    with server.resumed():
        await asyncio.sleep(0)


async def test_a_server_that_never_becomes_ready_is_a_timeout(tmp_path: Path) -> None:
    silent = Program("silent", (sys.executable, "-c", "while True: pass"), ready_line="up")
    with pytest.raises(TimeoutError, match="silent is not ready"):
        async with serving(silent, 1, 0.5, tmp_path, print):
            pass
