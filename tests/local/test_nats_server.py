"""The nats-server of a local system has the limits of the manifests and, where it is secured, their users."""

from __future__ import annotations

import re
import ssl
import subprocess
from pathlib import Path

import pytest

from services.local.nats_server import LIMITS, Access, find_binary, free_port, write_open, write_secured
from services.local.nats_users import rights_file

ROOT = Path(__file__).parents[2]
NAMES = {"gateway": ["gateway"], "verifier": ["verifier-0", "verifier-1"]}


def write(folder: Path, kind: str) -> Access:
    port = free_port()
    return write_open(folder, port) if kind == "open" else write_secured(folder, port, NAMES)


def test_its_limits_are_those_of_the_manifests() -> None:
    assert (ROOT / "k8s/base/nats/limits.conf").read_text() == LIMITS


@pytest.mark.parametrize("kind", ["open", "secured"])
def test_its_configuration_is_one_that_nats_takes(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "nats", kind)
    command = [find_binary(), "-t", "-c", tmp_path / "nats/nats.conf"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr


def test_a_secured_one_has_a_user_for_each_process_with_the_rights_of_its_name(tmp_path: Path) -> None:
    access = write(tmp_path / "nats", "secured")
    users = (tmp_path / "nats/users.conf").read_text()
    assert re.findall(r"permissions: \$rights-([\w-]+)", users) == ["gateway", "verifier-0", "verifier-1"]
    for kind, names in NAMES.items():
        assert (tmp_path / f"nats/{kind}s.conf").read_text() == rights_file(kind, names)
    assert set(access.settings) == {"gateway", "verifier-0", "verifier-1"}
    assert access.url.startswith("tls://127.0.0.1:")


def test_keys_and_certificates_are_new_each_time_and_for_their_owner_alone(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        access = write(tmp_path / "nats", "secured")
        seed = Path(access.settings["verifier-1"]["DSD_NATS_NKEY_SEED"])
        assert seed.stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "nats").stat().st_mode & 0o777 == 0o700
        ssl.create_default_context(cafile=access.settings["verifier-1"]["DSD_NATS_CA"])
        found.append((seed.read_text(), (tmp_path / "nats/ca.crt").read_bytes()))
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]
