"""dsd draft while its drafter runs: each signal reaches the drafter once, also one that comes early.

A stand-in for the drafter's module tells by its status which signal it got.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.client.conftest import ROOT, environment

END_S, TWICE = 30.0, 99
STAND_IN = f"""\
import signal
ends = {{signal.SIGINT, signal.SIGTERM}}
signal.pthread_sigmask(signal.SIG_BLOCK, ends)
print("ready", flush=True)
got = signal.sigwait(ends)
raise SystemExit({TWICE} if signal.sigtimedwait(ends, 0.5) else 40 + got)
"""
DSD = """\
import os, signal, subprocess
from client.drafting import drafter
drafter.MODULE = "stand_in"
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
raise SystemExit(drafter.run(drafter.DrafterPlan("key-alice", None, {})))
"""
EARLY = """\
class Early(subprocess.Popen):
    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        os.kill(os.getpid(), signal.SIGTERM)
subprocess.Popen = Early
raise"""


async def drafting(folder: Path, program: str) -> asyncio.subprocess.Process:
    """`dsd draft` in a process group of its own, as a shell starts it; its drafter may not run yet."""
    (folder / "stand_in.py").write_text(STAND_IN)
    env = environment(PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)]))
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=ROOT, env=env, stdout=pipe, start_new_session=True
    )


async def ended(process: asyncio.subprocess.Process) -> int:
    try:
        async with asyncio.timeout(END_S):
            await process.communicate()  # until the stand-in, too, has closed its output
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("to_all", [False, True], ids=["dsd alone", "its process group"])
async def test_a_signal_reaches_the_drafter_once(tmp_path: Path, number: signal.Signals, to_all: bool) -> None:
    process = await drafting(tmp_path, DSD)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    (os.killpg if to_all else os.kill)(process.pid, number)
    got = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM  # drafters drain at both
    assert await ended(process) == 40 + got


async def test_a_signal_that_comes_before_the_drafter_is_known_ends_it(tmp_path: Path) -> None:
    process = await drafting(tmp_path, DSD.replace("raise", EARLY))
    assert await ended(process) in (40 + signal.SIGTERM, 128 + signal.SIGTERM)
