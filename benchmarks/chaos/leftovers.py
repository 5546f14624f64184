"""What a system holds while no request runs: read before the faults and after them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from benchmarks.chaos.records import Leftovers
from benchmarks.chaos.system import LOOK_S, ChaosSystem
from benchmarks.harness.cell import own_mib

SETTLE_S = 90.0  # a session whose gateway was killed ends with its lease (30 s)
GROWN_MIB = 64.0  # the most that a process may hold beyond what it held at the start, without a drafter's KV cache
SESSIONS = {
    "gateway": ("dsd_gateway_sessions", "dsd_gateway_num_requests_waiting"),
    "verifier": ("dsd_verifier_sessions", "dsd_verifier_queue_tokens"),
    "drafter": ("dsd_drafter_sessions",),
}
SERVICES = (*SESSIONS, "controller")
FREE_KV, DRAFTER_KV, TASKS = "dsd_verifier_free_kv_tokens", "dsd_drafter_kv_bytes", "dsd_asyncio_tasks"


@dataclass(frozen=True, slots=True)
class Holdings:
    """At one moment, of all processes."""

    sessions: float
    free_kv_tokens: float
    num_subscriptions: int
    num_tasks: dict[str, int]
    memory_mib: dict[str, float]
    kv_mib: dict[str, float]  # of drafters: what they keep for the next turns of ended sessions


async def read_holdings(system: ChaosSystem) -> Holdings:
    sessions = free = 0.0
    kv_mib, tasks = {}, {}
    for service in SERVICES:
        for name in system.names(service):
            metrics = await system.metrics(name)
            sessions += sum(metrics[each] for each in SESSIONS.get(service, ()))
            free += metrics.get(FREE_KV, 0.0)
            kv_mib[name] = metrics.get(DRAFTER_KV, 0.0) / (1 << 20)
            tasks[name] = int(metrics[TASKS])
    pids = {name: child.pid for name, child in system.children.items()}
    memory = {name: own_mib(pid) for name, pid in pids.items() if pid is not None}
    return Holdings(sessions, free, await system.num_subscriptions(), tasks, memory, kv_mib)


async def idle_holdings(system: ChaosSystem) -> Holdings:
    """Once no session is left. Raises TimeoutError."""
    async with asyncio.timeout(SETTLE_S):
        while (now := await read_holdings(system)).sessions:  # noqa: ASYNC110  what other processes do sets no event here
            await asyncio.sleep(LOOK_S)
    return now


async def settled(system: ChaosSystem, before: Holdings) -> Leftovers:
    """What is left beyond `before`, once nothing is left or SETTLE_S have passed."""
    begun = time.monotonic()
    while True:
        now, waited_s = await read_holdings(system), time.monotonic() - begun
        tasks = {name: number - before.num_tasks[name] for name, number in now.num_tasks.items()}
        is_free = now.sessions == 0 and now.free_kv_tokens == before.free_kv_tokens and max(tasks.values()) <= 0
        if (is_free and now.num_subscriptions == before.num_subscriptions) or waited_s > SETTLE_S:
            break
        await asyncio.sleep(LOOK_S)
    grown = {
        name: round(mib - before.memory_mib[name] - now.kv_mib.get(name, 0.0), 1)
        for name, mib in now.memory_mib.items()
    }
    return Leftovers(
        sessions=now.sessions,
        kv_tokens=before.free_kv_tokens - now.free_kv_tokens,
        subscriptions=now.num_subscriptions - before.num_subscriptions,
        tasks=tasks,
        grown_mib=grown,
        waited_s=waited_s,
    )


def complaints(left: Leftovers) -> list[str]:
    """What is left that must not be."""
    found = {"sessions": left.sessions, "KV tokens": left.kv_tokens, "subscriptions": left.subscriptions}
    grown = {name: mib for name, mib in left.grown_mib.items() if mib > GROWN_MIB}
    return [
        *(f"{number:g} {what} left" for what, number in found.items() if number),
        *(f"{name} has {number} tasks more than at the start" for name, number in left.tasks.items() if number > 0),
        *(f"{name} holds {mib:.0f} MiB more than at the start" for name, mib in grown.items()),
    ]
