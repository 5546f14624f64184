"""What `python -m services` refuses, at once and in one line, before it prepares or starts anything."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from services.local import pidfile

ROOT = Path(__file__).parents[2]


def services(home: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services", *flags]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"DSD_HOME": str(home)}, capture_output=True, text=True, timeout=60
    )


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = services(tmp_path, "--detach", "--port", str(port))
    assert done.returncode == 1
    assert re.fullmatch(
        rf"can't listen at http://127\.0\.0\.1:{port} \(.+\): choose another --host or --port\n", done.stderr
    )
    assert not (tmp_path / "models").exists()


def test_an_address_that_is_none_of_this_machine_is_refused(tmp_path: Path) -> None:
    done = services(tmp_path, "--detach", "--host", "192.0.2.1")
    assert done.returncode == 1
    assert re.fullmatch(
        r"can't listen at http://192\.0\.2\.1:8080 \(.+\): choose another --host or --port\n", done.stderr
    )


def test_a_second_system_in_one_home_is_refused(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with pidfile.held(run_dir):
        done = services(tmp_path, "--detach", "--port", "1")
    assert done.returncode == 1
    assert done.stderr == f"a system runs already (process {os.getpid()}): stop it first\n"


def test_stopping_when_nothing_runs_says_so(tmp_path: Path) -> None:
    done = services(tmp_path, "--stop")
    assert done.returncode == 0
    assert done.stderr == "no system is running\n"


def test_a_secured_server_beside_one_that_runs_already_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSD_NATS_URL", "nats://127.0.0.1:4222")
    done = services(tmp_path, "--secure")
    assert done.returncode == 2
    assert "--secure" in done.stderr
    assert "DSD_NATS_URL is nats://127.0.0.1:4222" in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "models").exists()


def test_a_number_that_is_out_of_bounds_ends_with_status_2_and_names_the_flag(tmp_path: Path) -> None:
    done = services(tmp_path, "--verifiers", "0")
    assert done.returncode == 2
    assert "--verifiers" in done.stderr


@pytest.mark.parametrize("detach", [["--detach"], []])
def test_an_engine_without_a_python_that_has_it_is_refused(
    detach: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSD_ENGINE", "vllm")
    monkeypatch.setenv("DSD_VERIFIER_PYTHON", str(tmp_path / "none"))
    done = services(tmp_path, *detach)
    assert done.returncode == 1
    assert done.stderr == f"--verifier-python {tmp_path}/none can't be run: No such file or directory\n"
    assert not (tmp_path / "models").exists()
