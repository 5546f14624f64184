"""One hostile run: the system is started, attacked over HTTP and over the bus, and looked at after every attack.

Invariant: whatever a hostile request, connection or packet gets that it must not is a violation of the result, also in
a warm-up and beside the measurement of TPOT. Warm-ups alone do not count for memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp

from benchmarks.harness.origin import Origin
from benchmarks.hostile.answers import Violation
from benchmarks.hostile.flood import (
    Flood,
    all_bodies,
    all_connections,
    attack_all,
    measure_slowdown,
    send_all,
    systematic_bodies,
)
from benchmarks.hostile.honest import Disturbed, HonestClients
from benchmarks.hostile.records import HostileResult, HttpFigures
from benchmarks.hostile.role_attack import attack_as, known_of, together, violations_of
from benchmarks.hostile.system import HOSTILE, KV_TOKENS, MIN_READINGS, TIMEOUT_S, SystemUnderAttack, running
from client.gateway import ClientError

GROWTH_MIB = 8.0  # of a process's own memory, from the middle third of an attack to the last
MAX_SLOWDOWN = 1.1
NUM_CLIENTS, NUM_CONNECTIONS = 16, 64
NUM_PARTS = MIN_READINGS  # of an attack, each with the same mix; memory is read behind each
WARM_UP = 0.25  # share of more packets, sent first, after which memory counts
HTTP_WARM_UP = 1.5  # the same of bodies: until the verifier's caches (kernels, grammars, KV) are full
BODIES_PER_ROUND = 20_000  # for each of which all kinds of connections are opened once


@dataclass(frozen=True, slots=True)
class HostilePlan:
    """What to send. only: "", "http", "nats" or a role. rates: of hostile requests and packets, a second."""

    only: str
    num_requests: int
    num_packets: int
    request_rate: float
    packet_rate: float
    num_rounds: int
    seed: int

    @property
    def roles(self) -> list[str]:
        return [role for role in HOSTILE if self.only in ("", "nats", role)]


class HostileRun:
    """Attacks a running system."""

    def __init__(
        self, system: SystemUnderAttack, honest: HonestClients, plan: HostilePlan, result: HostileResult
    ) -> None:
        self._system = system
        self._honest = honest
        self._plan = plan
        self._result = result

    async def over_http(self) -> None:
        """Bodies and connections, then the slowdown beside those bodies that are refused."""
        await self._warm_up()
        num_sockets, flood = self._system.num_gateway_sockets(), await self._flood()
        await self._check("http")
        await asyncio.sleep(2 * TIMEOUT_S)  # idle connections are closed meanwhile
        if (left := self._system.num_gateway_sockets() - num_sockets) > NUM_CLIENTS:
            self._result.violations.append(f"{left} sockets of the gateway stay open")
        if self._plan.num_rounds:
            await self._measure_slowdown(flood)

    async def _warm_up(self) -> None:
        url, model, first = self._system.url, self._system.model, Flood()
        bodies = all_bodies(model, self._plan.seed + 1, self._num_warm_up)
        async with self._honest.asking(2):
            await send_all(url, bodies, NUM_CLIENTS, first)
            await attack_all(url, all_connections(model, self._num_repeats), NUM_CONNECTIONS, TIMEOUT_S, first)
        self._note(first.violations)

    async def _flood(self) -> Flood:
        """The attack that counts."""
        url, model, num, seed = self._system.url, self._system.model, self._plan.num_requests, self._plan.seed
        flood, sockets, num_equal = Flood(), Flood(), self._honest.num_equal
        bodies, connections = all_bodies(model, seed, num), list(all_connections(model, self._num_repeats))
        self._system.memory.clear()
        for part in range(NUM_PARTS):
            async with self._honest.asking(2):
                await send_all(url, bodies[part::NUM_PARTS], NUM_CLIENTS, flood)
                await attack_all(url, connections[part::NUM_PARTS], NUM_CONNECTIONS, TIMEOUT_S, sockets)
            await self._read_memory()
        self._note([*flood.violations, *sockets.violations])
        self._result.http = HttpFigures(
            len(systematic_bodies(model, seed, num)),
            self._num_warm_up,
            dict(flood.counts),
            dict(sockets.counts),
            sockets.longest_silence_s,
            self._honest.num_equal - num_equal,
        )
        return flood

    async def _measure_slowdown(self, flood: Flood) -> None:
        assert self._result.http is not None
        beside, plan = Flood(), self._plan
        slowdown = await measure_slowdown(
            self._system.url, self._honest, flood.refused, plan.request_rate, plan.num_rounds, beside, plan.seed
        )
        self._result.http.slowdown = slowdown
        self._note(beside.violations)
        if slowdown.ratio.high > MAX_SLOWDOWN:
            self._result.violations.append(f"TPOT is {slowdown.ratio} of that without hostile requests")

    async def over_the_bus(self, notify: Callable[[str], None]) -> None:
        """Each role in turn."""
        system, honest, plan = self._system, self._honest, self._plan
        known, num = await known_of(system.url, system.model, honest), plan.num_packets // len(HOSTILE)
        for role in plan.roles:
            notify(f"a hostile {role}")
            attack = partial(attack_as, system.access, role, HOSTILE[role], known, honest, rate=plan.packet_rate)
            first = await attack(int(num * WARM_UP), seed=plan.seed + NUM_PARTS)
            system.memory.clear()
            parts = []
            for part in range(NUM_PARTS):
                parts.append(await attack(-(-num // NUM_PARTS), seed=plan.seed + part))
                await self._read_memory()
            self._result.roles.append(figures := together(parts))
            self._result.violations += [*violations_of(first, is_warm_up=True), *violations_of(figures)]
            await self._check(role)

    async def _read_memory(self) -> None:
        """Behind answers that renew what verifiers and drafters keep of earlier texts, when no session is left."""
        try:
            await self._system.idle(self._honest.http)
            await self._honest.fill_cache(KV_TOKENS)
            for drafter in self._system.drafters():
                await self._honest.ask(self._honest.prompts[0], drafter)
            await self._system.idle(self._honest.http)
        except (TimeoutError, aiohttp.ClientError, ClientError, Disturbed) as error:  # such as of a process that ended
            self._result.violations.append(f"memory was not read, since the system is not as before: {error!r}")
            return
        self._system.read_memory()

    async def _check(self, attack: str) -> None:
        """What must hold after every attack."""
        growth = self._system.growth()
        self._result.growth[attack] = growth
        grown = [f"{name} grew by {mib:.1f} MiB" for name, mib in growth.items() if mib > GROWTH_MIB]
        ended = [f"{name} ended" for name in self._system.ended()]
        unhealthy = [f"{name} is not ready" for name in await self._system.unhealthy(self._honest.http)]
        self._result.violations += [f"{attack}: {what}" for what in (*grown, *ended, *unhealthy)]

    def _note(self, violations: Sequence[Violation]) -> None:
        self._result.violations += [str(each) for each in violations]

    @property
    def _num_warm_up(self) -> int:
        return int(self._plan.num_requests * HTTP_WARM_UP)

    @property
    def _num_repeats(self) -> int:
        return max(1, self._plan.num_requests // BODIES_PER_ROUND)


async def run(models: Path, plan: HostilePlan, notify: Callable[[str], None]) -> HostileResult:
    """Starts the system, and attacks it in the ways of the plan."""
    result = HostileResult(Origin.here("benchmarks.hostile"), plan.seed)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    with TemporaryDirectory(prefix="dsd-hostile-") as folder:
        async with (
            running(models, Path(folder), notify) as system,
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(force_close=True)) as http,
        ):
            honest = HonestClients(system.url, system.model, http)
            await honest.learn()
            attack = HostileRun(system, honest, plan, result)
            if plan.only in ("", "http"):
                await attack.over_http()
            if plan.roles:
                await attack.over_the_bus(notify)
            result.violations += [f"an honest client: {each}" for each in honest.disturbed]
            result.violations += [f"log of {each}" for each in system.complaints()]
    return result
