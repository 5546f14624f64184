"""Compiled code is reused only while no source file changes, and one process compiles at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
ASK = """
import dsd_sim, numba
from dsd_sim.engine.kv_cache import likely_kv_tokens
print(numba.config.CACHE_DIR, likely_kv_tokens(700, 0))
"""


def compiled_by(code: Path, home: Path) -> tuple[Path, int]:
    """The cache folder of a copy of the code, and the KV tokens that it reserves for 700."""
    env = os.environ | {"DSD_HOME": str(home), "PYTHONPATH": str(code)}
    done = subprocess.run([sys.executable, "-c", ASK], cwd=code, env=env, capture_output=True, text=True, check=True)
    folder, reserved = done.stdout.split()
    return Path(folder), int(reserved)


def test_a_changed_file_invalidates_all_compiled_code(tmp_path: Path) -> None:
    code = tmp_path / "code"
    for name in ("dsd_sim", "shared", "awc"):
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    first, reserved = compiled_by(code, tmp_path / "home")
    assert reserved == 704
    assert any(first.rglob("*.nbi"))
    assert compiled_by(code, tmp_path / "home") == (first, 704)
    called = code / "shared" / "policies" / "kv_cache.py"
    called.write_text(called.read_text().replace("KV_STEP = 64", "KV_STEP = 100"))
    second, reserved = compiled_by(code, tmp_path / "home")
    assert second != first
    assert reserved == 700


COMPILE = """
import sys
from pathlib import Path
import dsd_sim, numba
print(numba.config.CACHE_DIR, flush=True)
sys.stdin.readline()
numba.njit(lambda number: number + 1)(1)
print(Path(sys.argv[1]).exists())
"""


def test_a_process_compiles_only_when_no_other_one_does(tmp_path: Path) -> None:
    over = tmp_path / "over"
    env = os.environ | {"DSD_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", COMPILE, str(over)]
    with subprocess.Popen(run, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        with (folder / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process.stdin.write("\n")
            process.stdin.flush()
            time.sleep(3)
            over.touch()
        assert process.stdout.read().strip() == "True"
