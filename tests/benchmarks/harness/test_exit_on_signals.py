"""SIGTERM and a closed terminal end a benchmark with its clean-up."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BENCHMARK = """
import asyncio
from benchmarks.harness.cell import exit_on_signals

async def run():
    try:
        print("runs", flush=True)
        await asyncio.sleep(60)
    finally:
        print("cleaned up", flush=True)

exit_on_signals()
asyncio.run(run())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_runs_finally_blocks_and_sets_the_status(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", BENCHMARK], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    assert out == "cleaned up\n"
    assert process.returncode == 128 + number


def test_a_hangup_that_is_ignored_stays_so() -> None:
    program = "import signal; from benchmarks.harness.cell import exit_on_signals; exit_on_signals(); "
    program += "print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    for command, told in ((["nohup"], "True\n"), ([], "False\n")):
        done = subprocess.run([*command, sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == told
