"""One live system for all tests of this folder: `python -m services` on a free port, stopped when they are over."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.local.nats_server import free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def gateway(default_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a gateway that serves the default pair."""
    home = tmp_path_factory.mktemp("home")
    (home / "models").symlink_to(default_models.parent)
    port = free_port()
    services(home, "--port", str(port), "--detach")
    yield f"http://127.0.0.1:{port}"
    services(home, "--stop")


def services(home: Path, *arguments: str) -> None:
    """Runs `python -m services` with a DSD home of its own."""
    given = {name: value for name, value in os.environ.items() if name == "DSD_SECURE" or not name.startswith("DSD_")}
    command = [sys.executable, "-m", "services", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=given | {"DSD_HOME": str(home)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
