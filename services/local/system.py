"""A whole DSD system on this machine: its processes and their settings.

Invariant: all processes listen on loopback only, except the gateway if `host` says otherwise.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp

from services.local import nats_server
from services.local.engine import EngineName, VerifierEngine
from services.local.nats_server import Access
from services.local.pair import ModelPair
from services.local.supervisor import Child, Program, Supervisor, end_s

READY_S, NATS_S = 180.0, 20.0  # for a service and nats-server to become ready; a verifier's is its engine's
FLEET_S, FLEET_CHECK_S = 30.0, 0.1  # for the gateway to see all peers, and between two checks
FLEET = "fleet"  # the stage of all services but the gateway: after its end no session needs them
NUM_STAGES = 3  # gateway, fleet, NATS
STOP_SPARE_S = 10.0  # beyond the stages' own limits
BRIEF_SPIN = "100000"  # turns, some 0.1 ms: from one product of a pass to the next, and not beyond the pass


@dataclass(frozen=True, slots=True)
class SystemPlan:
    """What to run. There is one drafter for each draft of the pair."""

    pair: ModelPair
    num_verifiers: int = 1
    host: str = "127.0.0.1"
    port: int = 8080
    nats: Access | None = None  # None: the system starts its own
    secure: bool = False  # its own server has users and TLS
    engine: VerifierEngine = field(default_factory=VerifierEngine)

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def names(self) -> dict[str, list[str]]:
        """Names of the processes of each kind."""
        return {
            "controller": ["controller"],
            "verifier": [f"verifier-{number}" for number in range(self.num_verifiers)],
            "drafter": [f"drafter-{number}" for number in range(len(self.pair.drafts))],
            "gateway": ["gateway"],
        }

    @property
    def verifier_threads(self) -> int:
        """Threads of each verifier: the cores left by the drafters, divided among the verifiers."""
        return max(1, (num_cores() - len(self.pair.drafts)) // self.num_verifiers)

    @property
    def prefill_threads(self) -> int:
        """Threads of a verifier's passes of many tokens, as those of prompts: all cores."""
        return max(self.verifier_threads, num_cores() // self.num_verifiers)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stop_s() -> float:
    """The most seconds that a system with this environment takes to stop."""
    return NUM_STAGES * end_s(os.environ) + STOP_SPARE_S


def check_address(plan: SystemPlan) -> None:
    """Raises OSError if the gateway can't listen at the plan's address."""
    try:
        found = socket.getaddrinfo(plan.host, plan.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # as the gateway does: IPv4 sockets at the port don't matter
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
    except OSError as error:
        raise OSError(f"can't listen at {plan.address} ({error.strerror}): choose another --host or --port") from error


def service_programs(plan: SystemPlan, nats: Access) -> list[Program]:
    """The services' processes, in the order of their start."""
    common = {"DSD_NATS_URL": nats.url, "DSD_LOG_FORMAT": "json", "DSD_HTTP_HOST": "127.0.0.1", "DSD_HTTP_PORT": "0"}
    common |= {"DSD_MODEL_NAME": plan.pair.model_name}
    target = {"DSD_TARGET": str(plan.pair.target)}
    if plan.pair.is_default and plan.engine.name is EngineName.VLLM:
        target |= {"DSD_DTYPE": os.environ.get("DSD_DTYPE", "float32")}  # so small a model has many ties in bfloat16
    threads = {"DSD_NUM_THREADS": os.environ.get("DSD_NUM_THREADS", str(plan.verifier_threads))}
    threads |= {"OMP_WAIT_POLICY": "passive"}  # spinning threads of torch would take the drafters' cores
    if plan.engine.name is EngineName.VLLM:
        threads |= {"DSD_PREFILL_THREADS": os.environ.get("DSD_PREFILL_THREADS", str(plan.prefill_threads))}
        threads |= {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", BRIEF_SPIN)}
    drafts = [{"DSD_DRAFT": str(folder), "DSD_NUM_THREADS": "1"} for folder in plan.pair.drafts]
    kinds: dict[str, tuple[str, list[dict[str, str]]]] = {  # module, and the settings of each process
        "controller": ("window_controller", [{}]),
        "verifier": ("cloud_verifier", [target | threads | plan.engine.env] * plan.num_verifiers),
        "drafter": ("edge_drafter", drafts),
        "gateway": ("gateway", [target | {"DSD_HTTP_HOST": plan.host, "DSD_HTTP_PORT": str(plan.port)}]),
    }
    pythons = {"verifier": str(plan.engine.python)}
    made = [
        _service(pythons.get(kind, sys.executable), module, name, common | own | nats.settings.get(name, {}))
        for kind, (module, settings) in kinds.items()
        for name, own in zip(plan.names[kind], settings, strict=True)
    ]
    # else a drafter on one of a pass's cores makes it slower than on the others alone
    give_way = plan.engine.name is EngineName.VLLM
    return [replace(each, gives_way=give_way and each.name in plan.names["drafter"]) for each in made]


def _service(python: str, module: str, name: str, env: dict[str, str]) -> Program:
    stage = "" if module == "gateway" else FLEET
    return Program(name, (python, "-m", f"services.{module}"), env | {"DSD_NAME": name}, stage=stage)


@dataclass(frozen=True, slots=True)
class System:
    """A running system."""

    plan: SystemPlan
    children: dict[str, Child]


@asynccontextmanager
async def running(plan: SystemPlan, run_dir: Path, notify: Callable[[str], None]) -> AsyncIterator[System]:
    """Starts the system, waits until it is ready, and stops it at the end.

    Raises OSError if the gateway's address is taken, TimeoutError if the system does not become ready.
    """
    check_address(plan)
    supervisor = Supervisor(run_dir / "logs", notify)
    try:
        nats = plan.nats or await _start_nats(plan, supervisor, run_dir / "nats")
        children = [supervisor.start(program) for program in service_programs(plan, nats)]
        async with asyncio.TaskGroup() as tasks:
            for child in children:
                ready_s = plan.engine.ready_s if child.program.name in plan.names["verifier"] else READY_S
                tasks.create_task(_announce(supervisor, child, ready_s, notify))
        await _wait_for_fleet(plan)
        yield System(plan, supervisor.children)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        await supervisor.stop()


async def _wait_for_fleet(plan: SystemPlan) -> None:
    """Returns when the gateway knows every verifier and drafter. Raises TimeoutError."""
    expected = {"verifier": plan.num_verifiers, "drafter": len(plan.pair.drafts)}
    peers: dict[str, int] = {}
    try:
        async with asyncio.timeout(FLEET_S), aiohttp.ClientSession() as session:
            while any(peers.get(service, 0) < number for service, number in expected.items()):
                await asyncio.sleep(FLEET_CHECK_S)
                async with session.get(f"{plan.address}/metrics") as response:
                    peers = _peers(await response.text())
    except TimeoutError:
        raise TimeoutError(f"after {FLEET_S:.0f} s the gateway knows {peers}, expected {expected}") from None


def _peers(metrics: str) -> dict[str, int]:
    """The number of live instances of each service in a gateway's metrics."""
    found = re.findall(r'^dsd_gateway_peers{service="(\w+)"} ([\d.]+)$', metrics, re.MULTILINE)
    return {service: int(float(number)) for service, number in found}


async def _start_nats(plan: SystemPlan, supervisor: Supervisor, folder: Path) -> Access:
    port = nats_server.free_port()
    if plan.secure:
        access = nats_server.write_secured(folder, port, plan.names, os.environ.get("DSD_API_KEYS_FILE", ""))
    else:
        access = nats_server.write_open(folder, port)
    await supervisor.wait_ready(supervisor.start(nats_server.program(folder)), NATS_S)
    return access


async def _announce(supervisor: Supervisor, child: Child, ready_s: float, notify: Callable[[str], None]) -> None:
    await supervisor.wait_ready(child, ready_s)
    notify(f"{child.program.name} is ready")
