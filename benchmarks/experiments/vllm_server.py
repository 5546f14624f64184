"""vLLM's own OpenAI server, as the rival of a benchmark: `running` starts one on given cores.

Its worker spins for a second after each request, on a core that others use in their turn. So a server is stopped
(SIGSTOP) while it is not asked.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.pinned import move, pinned
from services.local import nats_server
from services.local.supervisor import Program, Supervisor

READY_S = 900.0  # it compiles a new model first
KV_GIB = "1"  # several servers fit this machine
READY_LINE = "Application startup complete"


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """One server. Its model computes on `cores`, with a thread on each; its HTTP server on `http_core`."""

    python: Path  # that has vLLM
    target: Path
    name: str
    cores: tuple[int, ...]
    http_core: int
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
            "OMP_WAIT_POLICY": "passive",
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
        move(child.pid, plan.http_core)
        os.killpg(child.pid, signal.SIGSTOP)
        try:
            yield VllmServer(f"http://127.0.0.1:{port}", child.pid)
        finally:
            os.killpg(child.pid, signal.SIGCONT)
    finally:
        await supervisor.stop()
