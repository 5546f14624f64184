"""The system under attack: all services as processes behind a NATS server with users and TLS.

Invariant: hostile peers have keys that nats_users.py made, as the services have. A run's health, memory and logs are
read from outside: /readyz, /proc, log files.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness.cell import complaint_of, own_mib
from client.gateway import ClientError, GatewayClient
from services.local import nats_server
from services.local.nats_server import Access
from services.local.pair import default_pair
from services.local.supervisor import Child, Supervisor
from services.local.system import SystemPlan, service_programs

# Who attacks with whose key. A gateway and a verifier have names of their own, since they may do what they want to
# their own sessions; a drafter and a controller have those of running processes. Of two idle verifiers a gateway takes
# the one whose name comes first: the hostile one.
HOSTILE = {"drafter": "drafter-1", "gateway": "gateway-1", "verifier": "another-verifier", "controller": "controller"}
DRAFTS = ("int8", "int4")
HEARTBEAT_S, TIMEOUT_S = 0.5, 5.0
KV_TOKENS = 2048  # of a verifier
ENV = {
    "DSD_HEARTBEAT_S": str(HEARTBEAT_S),
    "DSD_DEFAULT_MAX_TOKENS": "4",  # so that mutated bodies are cheap
    "DSD_HTTP_KEEPALIVE_S": str(TIMEOUT_S),
    "DSD_CLIENT_TIMEOUT_S": str(TIMEOUT_S),
    "DSD_REQUEST_TIMEOUT_S": "120",
    "DSD_LEASE_S": "10",  # of sessions that hostile gateways leave behind
    "DSD_NUM_THREADS": "1",
    "DSD_KV_TOKENS": str(KV_TOKENS),  # soon full: what is kept of earlier texts is no growth
    "DSD_PREFIX_CACHE_TOKENS": "0",  # of drafters: without ended sessions, the next one begins a new KV cache
    "DSD_DRAIN_S": "1",
    "DSD_API_KEYS_FILE": "",
}
READY_S, FLEET_S, CHECK_S = 180.0, 30.0, 0.1
HEALTHY_S = 20 * HEARTBEAT_S
MIN_READINGS = 6  # of memory
SESSIONS = ("dsd_gateway_sessions", "dsd_verifier_sessions", "dsd_drafter_sessions")
IDLE_S = 60.0  # the most until no session is left: those of hostile gateways end with their lease


@dataclass(slots=True)
class SystemUnderAttack:
    """The running processes, and what was seen of them."""

    url: str
    model: str
    access: Access
    children: dict[str, Child]
    log_dir: Path
    peers: set[str]  # ids of its verifiers and drafters
    memory: dict[str, list[float]] = field(default_factory=dict)  # readings during an attack, MiB

    def pids(self) -> dict[str, int]:
        return {name: child.pid for name, child in self.children.items() if child.pid is not None}

    def ended(self) -> list[str]:
        """Processes that ended, whether or not they were started again."""
        return [name for name, child in self.children.items() if child.num_starts > 1 or child.pid is None]

    def complaints(self) -> list[str]:
        """Errors in logs."""
        return [
            f"{path.stem}: {complaint}"
            for path in sorted(self.log_dir.glob("*.log"))
            for line in path.read_text(errors="replace").splitlines()
            if (complaint := complaint_of(line))
        ]

    def num_gateway_sockets(self) -> int:
        """Open sockets of the gateway."""
        links = Path(f"/proc/{self.children['gateway'].pid}/fd")
        return sum("socket" in os.path.realpath(path) for path in links.iterdir())  # some close meanwhile

    async def idle(self, http: aiohttp.ClientSession) -> None:
        """Returns when no process has a session, and gateways know nobody but the system's own. Raises TimeoutError."""
        async with asyncio.timeout(IDLE_S):
            while not await self._is_idle(http):  # noqa: ASYNC110  what other processes do sets no event here
                await asyncio.sleep(HEARTBEAT_S)

    async def _is_idle(self, http: aiohttp.ClientSession) -> bool:
        urls = [child.urls[-1] for child in self.children.values() if child.urls]
        return not any([await _num_sessions(http, url) for url in urls]) and await _peers(self.url, http) == self.peers

    def drafters(self) -> list[str]:
        """Their names."""
        return [name for name in self.children if name.startswith("drafter")]

    def read_memory(self) -> None:
        """Adds a reading of each process."""
        for name, pid in self.pids().items():
            self.memory.setdefault(name, []).append(own_mib(pid))

    def growth(self) -> dict[str, float]:
        """By process, MiB: the median of the last third of the readings, less that of the middle third."""
        found = {}
        for name, readings in self.memory.items():
            if len(readings) < MIN_READINGS:
                continue
            _, middle, last = np.array_split(np.array(readings), 3)
            found[name] = float(np.median(last) - np.median(middle))
        return found

    async def unhealthy(self, http: aiohttp.ClientSession) -> list[str]:
        """Processes that are not ready within a few heartbeats."""
        waiting = {name: child.urls[-1] for name, child in self.children.items() if child.urls}
        try:
            async with asyncio.timeout(HEALTHY_S):
                while waiting:
                    for name, url in list(waiting.items()):
                        async with http.get(f"{url}/readyz") as response:
                            if response.status == 200:
                                del waiting[name]
                    await asyncio.sleep(CHECK_S)
        except (TimeoutError, aiohttp.ClientError):
            return sorted(waiting)
        return []


@asynccontextmanager
async def running(models: Path, run_dir: Path, notify: Callable[[str], None]) -> AsyncIterator[SystemUnderAttack]:
    """Starts a gateway, a verifier, two drafters and a controller, with spare keys for hostile peers."""
    plan = SystemPlan(default_pair(models, DRAFTS, num_drafters=len(DRAFTS)), port=nats_server.free_port())
    names = {kind: list(dict.fromkeys([*own, HOSTILE[kind]])) for kind, own in plan.names.items()}
    supervisor = Supervisor(run_dir / "logs", notify)
    try:
        access = nats_server.write_secured(run_dir / "nats", nats_server.free_port(), names)
        await supervisor.wait_ready(supervisor.start(nats_server.program(run_dir / "nats")), READY_S)
        programs = [replace(each, env=each.env | ENV) for each in service_programs(plan, access)]
        for child in [supervisor.start(program) for program in programs]:
            await supervisor.wait_ready(child, READY_S)
        peers = await _wait_for_fleet(plan.address)
        children, logs = supervisor.children, run_dir / "logs"
        yield SystemUnderAttack(plan.address, plan.pair.model_name, access, children, logs, peers)
    finally:
        await supervisor.stop()


async def _wait_for_fleet(url: str) -> set[str]:
    """Returns the ids of the verifier and the drafters when the gateway knows them."""
    async with asyncio.timeout(FLEET_S), aiohttp.ClientSession() as http:
        while True:
            with suppress(ClientError):
                if len(peers := await _peers(url, http)) == 1 + len(DRAFTS):
                    return peers
            await asyncio.sleep(CHECK_S)


async def _peers(url: str, http: aiohttp.ClientSession) -> set[str]:
    fleet = await GatewayClient(url, http).fleet()
    return {each.instance_id for each in (*fleet.verifiers, *fleet.drafters)}


async def _num_sessions(http: aiohttp.ClientSession, url: str) -> float:
    async with http.get(f"{url}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
    return sum(each.value for family in families for each in family.samples if each.name in SESSIONS)
