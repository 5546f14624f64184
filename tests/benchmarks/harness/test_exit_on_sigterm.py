"""SIGTERM ends a benchmark with its clean-up."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

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


def test_sigterm_runs_finally_blocks_and_sets_the_status() -> None:
    with subprocess.Popen([sys.executable, "-c", BENCHMARK], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "runs\n"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert out == "cleaned up\n"
    assert process.returncode == 128 + signal.SIGTERM
