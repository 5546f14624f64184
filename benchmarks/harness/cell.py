"""One running benchmark cell: its processes, what they use, and whether its figures count.

Invariant: when `running` exits, all processes are gone. A cell whose `complaints` are not empty is void: since `begin`
a log held an error, a process restarted, or a stand-in overran its profile.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.harness.cell_plan import DRAFTER, GATEWAY, VERIFIER, CellPlan
from benchmarks.harness.requests import connected
from benchmarks.harness.standin import OVERRUN
from client.gateway import ClientError, GatewayClient
from services.gateway.admission.api_keys import digest
from services.local import nats_server
from services.local.supervisor import Child, Supervisor

READY_S, FLEET_S, CHECK_S = 180.0, 30.0, 0.1
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """Of one process: peak resident memory, and processor time."""

    peak_rss_mib: float
    cpu_s: float


@dataclass(slots=True)
class RunningCell:
    """The processes of a cell. url: address of the gateway; empty without one."""

    url: str
    nats_url: str
    children: dict[str, Child]
    log_dir: Path
    _read_from: dict[str, int] = field(default_factory=dict)
    _cpu_before: dict[str, float] = field(default_factory=dict)

    def begin(self) -> None:
        """Starts the count of complaints and processor time. Call it after the warm-up."""
        self._read_from = {path.name: path.stat().st_size for path in self.log_dir.glob("*.log")}
        self._cpu_before = {name: usage_of(pid).cpu_s for name, pid in self.pids().items()}

    def complaints(self) -> list[str]:
        """Why the figures since `begin` are void; empty if they count."""
        restarted = [f"{name} restarted" for name, child in self.children.items() if child.num_starts > 1]
        found = [line for path in sorted(self.log_dir.glob("*.log")) for line in self._complaints_in(path)]
        return restarted + found

    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {name: child.pid for name, child in self.children.items() if child.pid is not None}

    def usage(self) -> dict[str, ProcessUsage]:
        """Usage by name; processor time counts from `begin`."""
        found = {name: usage_of(pid) for name, pid in self.pids().items()}
        return {name: replace(used, cpu_s=used.cpu_s - self._cpu_before.get(name, 0.0)) for name, used in found.items()}

    def _complaints_in(self, path: Path) -> list[str]:
        with path.open("rb") as file:
            file.seek(self._read_from.get(path.name, 0))
            lines = file.read().decode(errors="replace").splitlines()
        return [f"{path.stem}: {complaint}" for line in lines if (complaint := complaint_of(line))]


def complaint_of(line: str) -> str | None:
    """The error or overrun that a log line reports; None: none."""
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return f"log line is not JSON: {line[:80]}"
    if event.get("event") == OVERRUN:
        return f"{OVERRUN}: {event.get('took_ms')} ms, {event.get('allowed_ms')} allowed"
    if event.get("level") in ("error", "critical"):
        return str(event.get("event"))
    return None


def usage_of(pid: int) -> ProcessUsage:
    """Reads /proc, so Linux only."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return ProcessUsage(peak_kib / 1024, (int(fields[11]) + int(fields[12])) / TICKS_PER_S)


def own_mib(pid: int) -> float:
    """Current memory of a process, without pages of files."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:"))) / 1024


def exit_on_signals() -> None:
    """Makes SIGTERM, and SIGHUP unless it is ignored, raise SystemExit, so that `running` stops the processes that it
    started."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))


@asynccontextmanager
async def running(plan: CellPlan, run_dir: Path, notify: Callable[[str], None]) -> AsyncIterator[RunningCell]:
    """Starts a cell and waits until it is ready. Raises TimeoutError if it does not get ready."""
    supervisor = Supervisor(run_dir / "logs", notify)
    if plan.api_keys:
        plan = replace(plan, env=plan.env | {"DSD_API_KEYS_FILE": str(write_api_keys(run_dir, plan.api_keys))})
    try:
        nats_url = relay_url = nats_server.write_open(run_dir / "nats", nats_server.free_port()).url
        await supervisor.wait_ready(supervisor.start(plan.nats(run_dir / "nats")), READY_S)
        if plan.has_relay:
            port = nats_server.free_port()
            await supervisor.wait_ready(supervisor.start(plan.relay(nats_url, port)), READY_S)
            relay_url = f"nats://127.0.0.1:{port}"
        http_port = nats_server.free_port()
        started = [supervisor.start(program) for program in plan.programs(nats_url, relay_url, http_port)]
        for child in started:
            await supervisor.wait_ready(child, max(READY_S, plan.engine.ready_s))
        url = f"http://127.0.0.1:{http_port}" if GATEWAY in plan.names else ""
        if url:
            await wait_for_fleet(url, plan)
        cell = RunningCell(url, nats_url, supervisor.children, run_dir / "logs")
        cell.begin()
        yield cell
    finally:
        await supervisor.stop()


def write_api_keys(folder: Path, keys: Iterable[str]) -> Path:
    """Writes the gateway's file of API keys."""
    path = folder / "keys.toml"
    entries = [f'[key-{number}]\nsha256 = "{digest(key).hex()}"\n' for number, key in enumerate(keys)]
    path.write_text("\n".join(entries), encoding="utf-8")
    return path


async def wait_for_fleet(url: str, plan: CellPlan) -> None:
    """Returns when the gateway knows every verifier and drafter."""
    try:
        async with asyncio.timeout(FLEET_S), connected(url, *plan.api_keys[:1]) as gateway:
            while True:
                if await _is_complete(gateway, plan):
                    return
                await asyncio.sleep(CHECK_S)
    except TimeoutError:
        raise TimeoutError(f"after {FLEET_S:.0f} s the gateway does not know all of {', '.join(plan.names)}") from None


async def _is_complete(gateway: GatewayClient, plan: CellPlan) -> bool:
    try:
        fleet = await gateway.fleet()
    except ClientError:  # the gateway may not serve yet
        return False
    expected = len(plan.processes(VERIFIER)), len(plan.processes(DRAFTER))
    return (len(fleet.verifiers), len(fleet.drafters)) == expected
