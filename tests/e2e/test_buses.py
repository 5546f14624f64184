"""End-to-end tests of whole systems again: with users and TLS, and with drafters behind a site's own NATS server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent
# Those that start a NATS server and processes; all others have one process and no server.
OF_PROCESSES = (
    "faults/test_failures.py",
    "faults/test_restarts.py",
    "test_clients.py",
    "test_fleet.py",
    "traces/test_traces.py",
)
SECURE = (  # they have users and TLS of their own
    "faults/test_stolen_key.py",
    "joining/test_doctor.py",
    "joining/test_own_drafters.py",
)
OF_COMMANDS = ("test_own_pair.py", "test_readme.py")  # they run `python -m services`


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    ("variable", "files"),
    [("DSD_SECURE", OF_PROCESSES + OF_COMMANDS), ("DSD_JOINED", OF_PROCESSES)],
    ids=["users and TLS", "a site joined by a leaf link"],
)
def test_everything_works_on_a_bus_with(variable: str, files: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", *(str(FOLDER / file) for file in files)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {variable: "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout.splitlines()[-1] or variable == "DSD_JOINED"


def test_every_file_that_starts_processes_is_run_again() -> None:
    starts = ("from tests.e2e.processes import", "from services.local")
    texts = {path.relative_to(FOLDER).as_posix(): path.read_text() for path in FOLDER.rglob("test_*.py")}
    found = [name for name, text in sorted(texts.items()) if any(f"\n{line}" in text for line in starts)]
    assert found == sorted(OF_PROCESSES + SECURE + OF_COMMANDS)
