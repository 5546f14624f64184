"""A scenario file with a sweep, and calls of the commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REPEATED = """
[sweep]
keys = { "policies.window" = [2, 4, 8], "edge.*.link.rtt_ms" = [10, 30] }
seeds = [1, 2]
"""
BASE = """
name = "test"
seed = 3
{sweep}
[workload]
kind = "closed"
num_clients = 8
num_requests = 40
lengths = {{ prompt = 40, answer = {{ low = 5, high = 60 }}, max_tokens = 100 }}
[[edge]]
name = "near"
count = 2
times = {{ step_ms = 8.0 }}
link = {{ rtt_ms = 20 }}
guesses = {{ kind = "independent", rate = 0.8 }}
[[edge]]
name = "far"
count = 2
times = {{ step_ms = 8.0 }}
link = {{ rtt_ms = 50 }}
guesses = {{ kind = "independent", rate = 0.7 }}
[[cloud]]
count = 1
times = {{ base_ms = 15.0, token_ms = 0.5 }}
[policies]
window = 8
"""


def written(folder: Path, sweep: str = REPEATED, *changes: tuple[str, str]) -> Path:
    text = BASE.format(sweep=sweep)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "scenario.toml"
    path.write_text(text)
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "dsd_sim", *map(str, arguments)]


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=280)
