"""Environments of clients, each with one client and nothing of ours, and the programs that run in them.

Invariant: an environment holds what its line of REQUIRED asks for. It is made once and kept in DSD's home; remove its
folder to have it made anew, with the newest releases.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shared.runtime.home import home

REQUIRED = {  # lower bounds: what was tested
    "langchain": ("langchain>=1.5", "langchain-openai>=1.7"),
    "instructor": ("instructor>=1.17",),
    "litellm": ("litellm[proxy]>=1.108",),
    "guidellm": ("guidellm>=0.8",),
    "aiperf": ("aiperf>=0.13",),
    "lm-eval": ("lm_eval[api]>=0.4.13", "transformers>=5.4"),
}
ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
INSTALL_S, RUN_S = 1500, 900
OFFLINE = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")


def made(name: str) -> Path:
    """The Python of an environment, made if it isn't there yet."""
    folder = home() / "clients" / name
    python, stamp = folder / "bin" / "python", folder / "made.json"
    wanted = json.dumps([*sys.version_info[:2], *REQUIRED[name]])
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        command = [python, "-m", "pip", "install", "-q", *REQUIRED[name]]
        subprocess.run(command, check=True, timeout=INSTALL_S)
        stamp.write_text(wanted, encoding="utf-8")
    return python


def with_vllm() -> Path:
    """The Python that has vLLM: DSD_VLLM_PYTHON, or that of `make vllm`."""
    python = Path(os.environ.get("DSD_VLLM_PYTHON") or ROOT / ".venv-vllm" / "bin" / "python")
    if not python.is_file():
        reason = f"no vLLM: {python} is not there (make vllm, or DSD_VLLM_PYTHON)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return python


def run(python: Path, program: str, folder: Path, *arguments: str) -> Any:
    """What a program printed, as JSON. It works in this folder and must succeed."""
    script = PROGRAMS / f"{program}.py"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DSD_", "PYTHON"))}
    with subprocess.Popen(
        [python, script, *arguments],
        cwd=folder,
        env=kept | OFFLINE | {"HF_HOME": str(folder / "huggingface"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            told, complaint = process.communicate(timeout=RUN_S)
        finally:
            with suppress(ProcessLookupError):  # what it has started and left
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, f"{program}:\n{told[-4000:]}\n{complaint[-8000:]}"
    return json.loads(told.splitlines()[-1])
