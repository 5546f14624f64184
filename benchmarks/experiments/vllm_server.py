"""vLLM's own OpenAI server, as the rival of a benchmark: `running` starts one on given cores."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
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


@asynccontextmanager
async def running(plan: ServerPlan, folder: Path, notify: Callable[[str], None]) -> AsyncIterator[str]:
    """The address of a running server."""
    port = nats_server.free_port()
    supervisor = Supervisor(folder / "logs", notify)
    try:
        child = supervisor.start(plan.program(port))
        await supervisor.wait_ready(child, READY_S)
        if child.pid is not None:
            move(child.pid, plan.http_core)
        yield f"http://127.0.0.1:{port}"
    finally:
        await supervisor.stop()
