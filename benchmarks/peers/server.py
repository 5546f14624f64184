"""A system under comparison, as its processes: each computes only while it is asked.

Invariant: outside `resumed` all processes of a server are stopped (SIGSTOP), so that they take no time of the system
that is measured.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from services.local.supervisor import Child, Program, Supervisor


@dataclass(frozen=True, slots=True)
class Server:
    """pids: of the children of supervisors that run now, each of which leads a process group."""

    url: str
    pids: Callable[[], Sequence[int]]

    @property
    def groups(self) -> tuple[int, ...]:
        return tuple(self.pids())

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    @contextmanager
    def resumed(self) -> Iterator[None]:
        self.resume()
        try:
            yield
        finally:
            self.stop()

    def _signal(self, number: signal.Signals) -> None:
        for group in self.groups:
            with suppress(ProcessLookupError):  # it ended; whoever asks it finds out
                os.killpg(group, number)


@asynccontextmanager
async def serving(
    program: Program,
    port: int,
    ready_s: float,
    folder: Path,
    notify: Callable[[str], None],
    adapt: Callable[[Child], None] = lambda child: None,
) -> AsyncIterator[Server]:
    """Starts a server of one program, waits until it is ready and stops it. adapt: what to do once it is ready. Raises
    RuntimeError if it ended."""
    supervisor = Supervisor(folder / "logs", notify)
    try:
        child = supervisor.start(program)
        await supervisor.wait_ready(child, ready_s)
        if child.pid is None:
            raise RuntimeError(f"{program.name} ended")
        adapt(child)
        server = Server(f"http://127.0.0.1:{port}", lambda: [] if child.pid is None else [child.pid])
        server.stop()
        try:
            yield server
        finally:
            server.resume()
    finally:
        await supervisor.stop()
