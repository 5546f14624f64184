"""The system of a chaos run: three NATS servers in a cluster, relays, a controller, verifiers, drafters, gateways.

Invariant: every process has its own group and restarts when it ends. Drafters reach each NATS server through a relay of
its own, and no server tells clients of the others: nobody goes around a relay. The logs lie on a file system of their
own where that can be mounted.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness.files import write_result
from benchmarks.harness.link import LinkConditions
from benchmarks.harness.relay import READY_LINE
from services.local import nats_server
from services.local.engine import VerifierEngine
from services.local.nats_server import Access
from services.local.pair import default_pair
from services.local.supervisor import Child, Program, Supervisor
from services.local.system import SystemPlan, service_programs

NUM_SERVERS = 3
SERVICES = ("gateway", "verifier", "drafter", "controller", "nats")
READY_S, LOOK_S, ANSWER_S = 180.0, 0.2, 2.0
RESTART_S = 900.0  # on vLLM, or a busy machine
LOG_DISK_MIB = 96
LINK = "link.json"  # in the run folder: the conditions of all relays
CLUSTER = """
server_name: nats-{number}
http: "127.0.0.1:{monitor}"
cluster {{
  name: chaos
  host: "127.0.0.1"
  port: {route}
  no_advertise: true
  routes: [{routes}]
}}
"""


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """What runs. fake_clock: the library of faketime; None: no service's clock can be set."""

    models: Path
    drafts: tuple[str, ...] = ("int8", "int8", "int4")
    num_verifiers: int = 2
    num_gateways: int = 2
    engine: VerifierEngine = field(default_factory=VerifierEngine)
    env: Mapping[str, str] = field(default_factory=dict)
    fake_clock: Path | None = None


@dataclass(slots=True)
class ChaosSystem:
    """The running processes. gateways: their addresses by name."""

    children: dict[str, Child]
    gateways: dict[str, str]
    monitors: dict[str, str]  # of the NATS servers
    run_dir: Path
    is_log_disk: bool  # the logs lie on a small file system of their own
    notices: list[str]
    http: aiohttp.ClientSession
    stopped: set[str] = field(default_factory=set)  # names of processes that SIGSTOP holds

    def names(self, service: str) -> list[str]:
        return [name for name in self.children if name.partition("-")[0] == service]

    def signal(self, name: str, number: signal.Signals) -> None:
        """To the process and its children; nothing if it does not run."""
        _signal(self.children[name], number)

    def set_link(self, conditions: LinkConditions) -> None:
        """Of all drafters."""
        write_result(self.run_dir / LINK, conditions)
        for name in self.names("relay"):
            self.signal(name, signal.SIGHUP)

    def set_clock(self, name: str, offset_s: int) -> None:
        """Sets the wall clock of a service ahead or back."""
        clock = self.run_dir / "clocks" / name
        unfinished = clock.with_suffix(".part")
        unfinished.write_text(f"{offset_s:+d}\n", encoding="utf-8")
        unfinished.replace(clock)

    async def is_ready(self, name: str) -> bool:
        """Whether a process runs and says that it is ready."""
        child = self.children[name]
        if name in self.stopped or child.pid is None or not child.ready.is_set():
            return False
        if name.startswith("relay"):
            return True
        url = f"{self.monitors[name]}/healthz" if name in self.monitors else f"{child.urls[-1]}/readyz"
        try:
            async with self.http.get(url) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def ready(self, name: str) -> None:
        """Returns when a process is ready. Raises TimeoutError."""
        async with asyncio.timeout(RESTART_S):
            while not await self.is_ready(name):  # noqa: ASYNC110  what other processes do sets no event here
                await asyncio.sleep(LOOK_S)

    async def whole(self) -> None:
        """Returns when every process is ready, and every gateway hears all verifiers and drafters."""
        expected = {service: len(self.names(service)) for service in ("verifier", "drafter")}
        for name in self.children:
            await self.ready(name)
        async with asyncio.timeout(RESTART_S):
            for name in self.gateways:
                while await self._peers(name) != expected:  # noqa: ASYNC110  what other processes do sets no event here
                    await asyncio.sleep(LOOK_S)

    async def metrics(self, name: str) -> dict[str, float]:
        """The sums of a process's metrics over their labels."""
        return _sums(await self._metrics_text(name))

    async def num_subscriptions(self) -> int:
        """Of all clients of all NATS servers."""
        total = 0
        for url in self.monitors.values():
            async with self.http.get(f"{url}/connz") as response:
                connections = msgspec.json.decode(await response.read())["connections"]
            total += sum(each["subscriptions"] for each in connections)
        return total

    async def _peers(self, gateway: str) -> dict[str, float]:
        families = text_string_to_metric_families(await self._metrics_text(gateway))
        samples = [sample for family in families for sample in family.samples]
        found = {each.labels["service"]: each.value for each in samples if each.name == "dsd_gateway_peers"}
        return {service: number for service, number in found.items() if service != "controller"}

    async def _metrics_text(self, name: str) -> str:
        async with self.http.get(f"{self.children[name].urls[-1]}/metrics") as response:
            return await response.text()


def _sums(text: str) -> dict[str, float]:
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


# --- start ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def running(plan: ChaosPlan, run_dir: Path, notify: Callable[[str], None]) -> AsyncIterator[ChaosSystem]:
    """Starts everything, and ends it whatever happens. Raises TimeoutError if it does not become ready."""
    notices: list[str] = []

    def note(text: str) -> None:
        notices.append(text)
        notify(text)

    with ExitStack() as stack:
        is_log_disk = _mount_log_disk(run_dir / "logs", stack)
        supervisor = Supervisor(run_dir / "logs", note)
        try:
            urls, monitors = _write_cluster(run_dir)
            for name in monitors:
                supervisor.start(replace(nats_server.program(run_dir / name), name=name))
            relay_ports = [nats_server.free_port() for _ in urls]
            gateways = {f"gateway-{i}": f"http://127.0.0.1:{nats_server.free_port()}" for i in range(plan.num_gateways)}
            relays = [
                _relay(i, url, port, run_dir) for i, (url, port) in enumerate(zip(urls, relay_ports, strict=True))
            ]
            relay_urls = [f"nats://127.0.0.1:{port}" for port in relay_ports]
            for program in [*relays, *_programs(plan, run_dir, urls, relay_urls, gateways)]:
                supervisor.start(program)
            for child in supervisor.children.values():
                await supervisor.wait_ready(child, max(READY_S, plan.engine.ready_s))
            timeout = aiohttp.ClientTimeout(total=ANSWER_S)
            async with aiohttp.ClientSession(timeout=timeout) as http:
                system = ChaosSystem(supervisor.children, gateways, monitors, run_dir, is_log_disk, notices, http)
                await system.whole()
                yield system
        finally:
            for child in supervisor.children.values():  # a stopped process would not end
                _signal(child, signal.SIGCONT)
            await supervisor.stop()


def _signal(child: Child, number: signal.Signals) -> None:
    if child.pid is not None:
        with suppress(ProcessLookupError):  # it has ended just now
            os.killpg(child.pid, number)


def _mount_log_disk(folder: Path, stack: ExitStack) -> bool:
    """A tmpfs for the logs, if this process may mount one."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={LOG_DISK_MIB}m", "dsd-chaos-logs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=False)
    return True


def _write_cluster(run_dir: Path) -> tuple[list[str], dict[str, str]]:
    """Writes the servers' configurations; returns their addresses, and those of their monitors by name."""
    routes = [nats_server.free_port() for _ in range(NUM_SERVERS)]
    urls, monitors = [], {}
    for number, route in enumerate(routes):
        folder, monitor = run_dir / f"nats-{number}", nats_server.free_port()
        urls.append(nats_server.write_open(folder, nats_server.free_port()).url)
        others = ", ".join(f'"nats://127.0.0.1:{other}"' for other in routes if other != route)
        with (folder / "nats.conf").open("a", encoding="utf-8") as file:
            file.write(CLUSTER.format(number=number, monitor=monitor, route=route, routes=others))
        monitors[folder.name] = f"http://127.0.0.1:{monitor}"
    return urls, monitors


def _relay(number: int, target: str, port: int, run_dir: Path) -> Program:
    argv = (sys.executable, "-m", "benchmarks.harness.relay", "--to", target, "--port", str(port))
    return Program(f"relay-{number}", (*argv, "--conditions", str(run_dir / LINK)), ready_line=READY_LINE)


def _programs(
    plan: ChaosPlan, run_dir: Path, urls: list[str], relay_urls: list[str], gateways: Mapping[str, str]
) -> list[Program]:
    """The services; each has every NATS server's address."""
    pair = default_pair(plan.models, plan.drafts, len(plan.drafts))
    programs = []
    for each in service_programs(SystemPlan(pair, plan.num_verifiers, engine=plan.engine), Access(",".join(urls))):
        if each.name == "gateway":
            ports = {name: url.rpartition(":")[2] for name, url in gateways.items()}
            programs += [_changed(each, name, {"DSD_HTTP_PORT": port}) for name, port in ports.items()]
        elif each.name.startswith("drafter"):
            programs.append(_changed(each, each.name, {"DSD_NATS_URL": ",".join(relay_urls)}))
        else:
            programs.append(each)
    return [_changed(each, each.name, {**plan.env, **_clock_env(plan, run_dir, each.name)}) for each in programs]


def _changed(program: Program, name: str, env: Mapping[str, str]) -> Program:
    return replace(program, name=name, env={**program.env, "DSD_NAME": name, **env})


def _clock_env(plan: ChaosPlan, run_dir: Path, name: str) -> dict[str, str]:
    """Of a service whose wall clock a file sets. Its monotonic clock stays as it is."""
    if plan.fake_clock is None:
        return {}
    clock = run_dir / "clocks" / name
    clock.parent.mkdir(exist_ok=True)
    clock.write_text("+0\n", encoding="utf-8")
    return {
        "LD_PRELOAD": str(plan.fake_clock),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # else each thread that waits for Python's lock takes a whole core
        "FAKETIME_CACHE_DURATION": "1",  # seconds between two looks at the file
    }
