"""A whole DSD system on this machine: which processes, with which settings.

Invariant: all of it listens on loopback only, unless the gateway is told otherwise.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from services.local import nats_server
from services.local.pair import Pair
from services.local.supervisor import Child, Program, Supervisor

READY_S = 180.0
FLEET_S, FLEET_LOOK_S = 30.0, 0.1


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: one drafter for each draft of the pair."""

    pair: Pair
    num_verifiers: int = 1
    host: str = "127.0.0.1"
    port: int = 8080
    nats_url: str = ""  # empty: a nats-server of its own

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def verifier_threads(self) -> int:
        """The cores that the drafters leave, shared by the verifiers."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, (cores - len(self.pair.drafts)) // self.num_verifiers)


def check_address(plan: Plan) -> None:
    """Raises OSError when the gateway could not listen at the plan's address."""
    try:
        found = socket.getaddrinfo(plan.host, plan.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise OSError(
            f"{plan.address} can't be listened at ({error.strerror}): choose another --host or --port"
        ) from error


def service_programs(plan: Plan, nats_url: str) -> list[Program]:
    """The services' processes in the order of their start."""
    common = {"DSD_NATS_URL": nats_url, "DSD_LOG_FORMAT": "json", "DSD_HTTP_HOST": "127.0.0.1", "DSD_HTTP_PORT": "0"}
    common |= {"DSD_MODEL_NAME": plan.pair.model_name}
    target = {"DSD_TARGET": str(plan.pair.target)}
    threads = {"DSD_NUM_THREADS": os.environ.get("DSD_NUM_THREADS", str(plan.verifier_threads))}
    threads |= {"OMP_WAIT_POLICY": "passive"}  # torch's threads must not spin on cores that drafters share
    gateway = {"DSD_HTTP_HOST": plan.host, "DSD_HTTP_PORT": str(plan.port)}
    programs = [_service("window_controller", "controller", common)]
    programs += [
        _service("cloud_verifier", f"verifier-{i}", common | target | threads) for i in range(plan.num_verifiers)
    ]
    for i, folder in enumerate(plan.pair.drafts):
        kind = {"DSD_DRAFT": str(folder), "DSD_NUM_THREADS": "1"}
        programs += [_service("edge_drafter", f"drafter-{i}", common | kind)]
    return [*programs, _service("gateway", "gateway", common | target | gateway)]


def _service(module: str, name: str, env: dict[str, str]) -> Program:
    return Program(name, (sys.executable, "-m", f"services.{module}"), env | {"DSD_NAME": name})


@dataclass(frozen=True, slots=True)
class System:
    """A running system."""

    plan: Plan
    nats_url: str
    children: dict[str, Child]


@asynccontextmanager
async def running(plan: Plan, run_dir: Path, notify: Callable[[str], None]) -> AsyncIterator[System]:
    """Starts the system, waits until it is ready, and stops it at the end.

    Raises OSError when the gateway's address is taken, TimeoutError when the system does not get ready.
    """
    check_address(plan)
    supervisor = Supervisor(run_dir / "logs", notify)
    try:
        nats_url = plan.nats_url or await _start_nats(supervisor, run_dir)
        children = [supervisor.start(program) for program in service_programs(plan, nats_url)]
        async with asyncio.TaskGroup() as tasks:
            for child in children:
                tasks.create_task(_announce(supervisor, child, notify))
        await _wait_for_fleet(plan)
        yield System(plan, nats_url, supervisor.children)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        await supervisor.stop()


async def _wait_for_fleet(plan: Plan) -> None:
    """Returns when the gateway has heard of every verifier and drafter; raises TimeoutError."""
    expected = {"verifier": plan.num_verifiers, "drafter": len(plan.pair.drafts)}
    peers: dict[str, int] = {}
    try:
        async with asyncio.timeout(FLEET_S), aiohttp.ClientSession() as session:
            while any(peers.get(service, 0) < number for service, number in expected.items()):
                await asyncio.sleep(FLEET_LOOK_S)
                async with session.get(f"{plan.address}/metrics") as response:
                    peers = _peers(await response.text())
    except TimeoutError:
        raise TimeoutError(f"after {FLEET_S:.0f} s the gateway has heard of {peers}, not of {expected}") from None


def _peers(metrics: str) -> dict[str, int]:
    """The live instances of each service that a gateway's metrics tell of."""
    found = re.findall(r'^dsd_gateway_peers{service="(\w+)"} ([\d.]+)$', metrics, re.MULTILINE)
    return {service: int(float(number)) for service, number in found}


async def _start_nats(supervisor: Supervisor, run_dir: Path) -> str:
    port = nats_server.free_port()
    config = nats_server.write_config(run_dir, port)
    argv = (str(nats_server.find_binary()), "-c", str(config))
    child = supervisor.start(Program("nats-server", argv, ready_line="Server is ready"))
    await supervisor.wait_ready(child, 20)
    return f"nats://127.0.0.1:{port}"


async def _announce(supervisor: Supervisor, child: Child, notify: Callable[[str], None]) -> None:
    await supervisor.wait_ready(child, READY_S)
    notify(f"{child.program.name} is ready")
