"""vLLM's own OpenAI server: `running` starts one on given cores.

Its worker spins for a second after each request, on a core that others use in their turn: one more reason to stop a
server while it is not asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.pinned import move, pinned
from benchmarks.peers.server import Server, serving
from services.local import nats_server
from services.local.supervisor import Child, Program

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


def others_of(group: int) -> list[int]:
    """The processes of a server's group that don't compute the model."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # of processes that just ended
            name, _, fields = path.read_text().partition("(")[2].rpartition(")")
            if int(fields.split()[2]) == group and name != WORKER:
                found.append(int(path.parent.name))
    return found


async def version_of(python: Path) -> str:
    """The installed vLLM of another Python."""
    code = "import vllm; print(vllm.__version__)"
    process = await asyncio.create_subprocess_exec(
        str(python), "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    told, _ = await process.communicate()
    return f"vLLM {told.decode().splitlines()[-1]}"


@asynccontextmanager
async def running(plan: ServerPlan, folder: Path, notify: Callable[[str], None]) -> AsyncIterator[Server]:
    """Starts a server, waits until it is ready and stops it. Raises RuntimeError if it ended."""

    def adapt(child: Child) -> None:
        if len(plan.cores) == 1 and child.pid is not None:
            for pid in others_of(child.pid):
                move(pid, plan.other_core)

    port = nats_server.free_port()
    async with serving(plan.program(port), port, READY_S, folder, notify, adapt) as server:
        yield server
