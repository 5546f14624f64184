"""Hostile clients and peers against a whole system: python -m benchmarks.hostile.

First hostile HTTP clients, then a hostile drafter, gateway, verifier and controller on the bus. Honest clients ask all
the time. Exits with status 1 if anything happened that must not.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import aiohttp
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.harness.cell import exit_on_sigterm
from benchmarks.harness.files import write_result
from benchmarks.harness.origin import Origin
from benchmarks.hostile.flood import (
    Flood,
    Slowdown,
    all_bodies,
    all_connections,
    attack_all,
    measure_slowdown,
    send_all,
)
from benchmarks.hostile.honest import HonestClients
from benchmarks.hostile.siege import Siege, besiege, known_of
from benchmarks.hostile.system import HOSTILE, TIMEOUT_S, SystemUnderAttack, running
from shared.runtime.home import default_models_dir

GROWTH_MIB = 8.0  # of a process's own memory, from the middle third of an attack to the last
MAX_SLOWDOWN = 1.1
MAX_SHOWN = 20  # violations on the terminal
NUM_CLIENTS, NUM_CONNECTIONS = 16, 64
NUM_PARTS = 6  # of bodies and connections in turn, so that all thirds of the attack have the same of both
ALLOWED_S = 4 * TIMEOUT_S + 20  # for the gateway to give up a slow connection on a busy machine
WARM_UP = 0.25  # share of more packets, sent first, after which memory counts
HTTP_WARM_UP = (
    3.0  # the same of bodies, beside honest clients: until the verifier's caches (kernels, grammars, KV) are full
)

console = Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(slots=True)
class Findings:
    """The result of a run. faults: what must not happen; none in a good run."""

    seed: int
    origin: Origin
    requests: dict[str, int] = field(default_factory=dict)  # by class of answer
    connections: dict[str, int] = field(default_factory=dict)
    num_equal: int = 0  # honest answers beside them
    slowdown: Slowdown | None = None
    sieges: list[Siege] = field(default_factory=list)
    growth: dict[str, dict[str, float]] = field(default_factory=dict)  # MiB, by attack and process
    faults: list[str] = field(default_factory=list)


class Attack:
    """One run against a running system."""

    def __init__(self, system: SystemUnderAttack, honest: HonestClients, findings: Findings) -> None:
        self._system = system
        self._honest = honest
        self._found = findings

    async def over_http(self, num: int, repeats: int, rate: float, rounds: int) -> None:
        """Bodies and connections, then the slowdown beside those bodies that are refused."""
        url, model, seed = self._system.url, self._system.model, self._found.seed
        flood, sockets, first = Flood(), Flood(), Flood()
        async with self._honest.asking(2):
            await send_all(url, all_bodies(model, seed + 1, int(num * HTTP_WARM_UP)), NUM_CLIENTS, first)
            await attack_all(url, all_connections(model, repeats), NUM_CONNECTIONS, ALLOWED_S, first)
        num_sockets = self._system.num_gateway_sockets()
        bodies, connections = list(all_bodies(model, seed, num)), list(all_connections(model, repeats))
        async with self._system.watching(), self._honest.asking(2):
            for part in range(NUM_PARTS):
                await send_all(url, bodies[part::NUM_PARTS], NUM_CLIENTS, flood)
                await attack_all(url, connections[part::NUM_PARTS], NUM_CONNECTIONS, ALLOWED_S, sockets)
        self._found.requests, self._found.connections = dict(flood.counts), dict(sockets.counts)
        self._found.num_equal = self._honest.num_equal
        self._found.faults += [str(each) for each in [*first.violations, *flood.violations, *sockets.violations]]
        await self._check("http")
        await asyncio.sleep(2 * TIMEOUT_S)  # idle connections are closed meanwhile
        if (left := self._system.num_gateway_sockets() - num_sockets) > NUM_CLIENTS:
            self._found.faults.append(f"{left} sockets of the gateway stay open")
        if rounds:
            refused = flood.refused
            self._found.slowdown = await measure_slowdown(url, self._honest, refused, rate, rounds, Flood(), seed)
            if self._found.slowdown.ratio.high > MAX_SLOWDOWN:
                self._found.faults.append(f"TPOT is {self._found.slowdown.ratio} of that without hostile requests")

    async def over_the_bus(self, num: int, rate: float, roles: list[str]) -> None:
        """Each role in turn."""
        known = await known_of(self._system.url, self._system.model, self._honest)
        for role in roles:
            console.print(f"a hostile {role}", highlight=False)
            access, name, seed = self._system.access, HOSTILE[role], self._found.seed
            await besiege(access, role, name, known, self._honest, int(num * WARM_UP), rate, seed + 1)
            async with self._system.watching():
                siege = await besiege(access, role, name, known, self._honest, num, rate, seed)
            self._found.sieges.append(siege)
            await self._check(role)

    async def _check(self, attack: str) -> None:
        """What must hold after every attack."""
        growth = self._system.growth()
        self._found.growth[attack] = growth
        grown = [f"{name} grew by {mib:.1f} MiB" for name, mib in growth.items() if mib > GROWTH_MIB]
        ended = [f"{name} ended" for name in self._system.ended()]
        unhealthy = [f"{name} is not ready" for name in await self._system.unhealthy(self._honest.http)]
        self._found.faults += [f"{attack}: {what}" for what in (*grown, *ended, *unhealthy)]


async def run(models: Path, only: str, num_requests: int, num_messages: int, rates: tuple[float, float], rounds: int,
              seed: int) -> Findings:  # fmt: skip
    """Starts the system, and attacks it in all ways, or in those named `only`."""
    findings = Findings(seed, Origin.here("benchmarks.hostile"))
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    with TemporaryDirectory(prefix="dsd-hostile-") as folder:
        async with (
            running(models, Path(folder), console.print) as system,
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(force_close=True)) as http,
        ):
            honest = HonestClients(system.url, system.model, http)
            await honest.learn()
            attack = Attack(system, honest, findings)
            if only in ("", "http"):
                await attack.over_http(num_requests, max(1, num_requests // 10_000), rates[0], rounds)
            if roles := [role for role in HOSTILE if only in ("", "nats", role)]:
                await attack.over_the_bus(num_messages // len(HOSTILE), rates[1], roles)
            findings.faults += [f"an honest client: {each}" for each in honest.disturbed]
            findings.faults += [f"log of {each}" for each in system.complaints()]
    return findings


def tables(found: Findings) -> list[Table]:
    answers = Table("answer to a body", "number", title=f"{sum(found.requests.values())} requests, seed {found.seed}")
    for kind, number in sorted(found.requests.items()):
        answers.add_row(kind, str(number))
    connections = Table("answers to a connection, and its end", "number")
    for kind, number in sorted(found.connections.items()):
        connections.add_row(kind, str(number))
    roles = Table("role", "packets", "s", "types", "denied", "honest texts equal", "left out", "disturbed")
    for each in found.sieges:
        counts = each.num_equal, each.num_left_out, len(each.disturbed)
        roles.add_row(
            each.role,
            str(each.num_packets),
            f"{each.seconds:.0f}",
            str(len(each.types)),
            str(each.denied),
            *map(str, counts),
        )
    names = sorted({name for growth in found.growth.values() for name in growth})
    memory = Table("growth, MiB", *names)
    for attack, growth in found.growth.items():
        memory.add_row(attack, *(f"{growth.get(name, 0.0):.1f}" for name in names))
    return [table for table in (answers, connections, roles, memory) if table.row_count]


def show(found: Findings) -> None:
    for table in tables(found):
        Console().print(table)
    if (slow := found.slowdown) is not None:
        told = f"TPOT {slow.ratio} of {slow.quiet_ms:.1f} ms at {slow.rate:.0f} hostile requests a second"
        console.print(f"{told}, {slow.num_rounds} rounds", highlight=False)
    for fault in found.faults[:MAX_SHOWN]:
        console.print(fault, style="red", highlight=False, markup=False)
    kinds = Counter(fault.partition("\n")[0][:80] for fault in found.faults)
    console.print(
        f"{found.num_equal} honest texts equal beside HTTP; {len(found.faults)} faults {dict(kinds)}", highlight=False
    )


@app.command()
def main(
    only: Annotated[str, typer.Option(help="http, nats, or one role.")] = "",
    requests: Annotated[int, typer.Option(min=10, help="Hostile bodies.")] = 20_000,
    messages: Annotated[int, typer.Option(min=100, help="Hostile packets of all roles together.")] = 100_000,
    rate: Annotated[float, typer.Option(min=1, help="Hostile requests a second while TPOT is measured.")] = 20.0,
    message_rate: Annotated[float, typer.Option(min=1, help="Most hostile packets a second.")] = 500.0,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of the TPOT measurement; 0: none.")] = 40,
    seed: Annotated[int | None, typer.Option(help="Repeats a run; by default a random one, which is printed.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the findings to this JSON file.")] = None,
) -> None:
    """Attacks the default pair's system in all ways that clients and holders of NATS keys have."""
    exit_on_sigterm()
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    console.print(f"seed {seed}", highlight=False)
    rates = rate, message_rate
    found = asyncio.run(run(default_models_dir(), only, requests, messages, rates, rounds, seed))
    show(found)
    if output is not None:
        write_result(output, found)
    raise typer.Exit(bool(found.faults))


if __name__ == "__main__":
    app()
