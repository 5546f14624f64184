"""vLLM's own OpenAI server, as the rival of a benchmark: `running` starts one on given cores.

Its worker spins for a second after each request, on a core that others use in their turn. So a server is stopped
(SIGSTOP) while it is not asked.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.pinned import move, pinned
from services.local import nats_server
from services.local.supervisor import Program, Supervisor

READY_S = 900.0  # it compiles a new model first
KV_GIB = "1"  # several servers fit this machine
WORKER = "VLLM::Worker"  # name of the process that computes
READY_LINE = "Application startup complete"


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """One server. Its model computes on `cores`, with a thread on each. On one core it computes alone: HTTP server and
    scheduler are on `other_core`."""

    python: Path  # that has vLLM
    target: Path
    name: str
    cores: tuple[int, ...]
    other_core: int
    flags: tuple[str, ...] = ()
    speculation: dict[str, Any] = field(default_factory=dict)

    def program(self, port: int) -> Program:
        flags = [*self.flags, "--host", "127.0.0.1", "--port", str(port), "--served-model-name", self.name]
        if self.speculation:
            flags += ["--speculative-config", json.dumps(self.speculation)]
        command = (str(self.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.target), *flags)
        env = {
            "OMP_NUM_THREADS": str(len(self.cores)),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": KV_GIB,
            "VLLM_USE_AOT_COMPILE": "0",  # as the verifier
            "VLLM_NO_USAGE_STATS": "1",
        }
        argv = pinned(self.cores[0], command) if len(self.cores) == 1 else command
        return Program(self.name, argv, env, ready_line=READY_LINE)


@dataclass(frozen=True, slots=True)
class VllmServer:
    """A server that is stopped except within `resumed`. pid: of its first process, which leads their group."""

    url: str
    pid: int

    @contextmanager
    def resumed(self) -> Iterator[None]:
        os.killpg(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self.pid, signal.SIGSTOP)


def others_of(group: int) -> list[int]:
    """The processes of a server's group that don't compute the model."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # of processes that just ended
            name, _, fields = path.read_text().partition("(")[2].rpartition(")")
            if int(fields.split()[2]) == group and name != WORKER:
                found.append(int(path.parent.name))
    return found


@asynccontextmanager
async def running(plan: ServerPlan, folder: Path, notify: Callable[[str], None]) -> AsyncIterator[VllmServer]:
    """Starts a server, waits until it is ready and stops it. Raises RuntimeError if it ended."""
    port = nats_server.free_port()
    supervisor = Supervisor(folder / "logs", notify)
    try:
        child = supervisor.start(plan.program(port))
        await supervisor.wait_ready(child, READY_S)
        if child.pid is None:
            raise RuntimeError(f"{plan.name} ended")
        if len(plan.cores) == 1:
            for pid in others_of(child.pid):
                move(pid, plan.other_core)
        os.killpg(child.pid, signal.SIGSTOP)
        try:
            yield VllmServer(f"http://127.0.0.1:{port}", child.pid)
        finally:
            os.killpg(child.pid, signal.SIGCONT)
    finally:
        await supervisor.stop()
