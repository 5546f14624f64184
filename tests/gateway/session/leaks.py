"""Whether a gateway is as it was before: sessions, tasks, files and sockets, memory."""

from __future__ import annotations

import asyncio
import gc
import os
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.gateway.conftest import World, until


@dataclass(frozen=True)
class Holdings:
    """What is held at one moment."""

    num_tasks: int
    num_files: int  # sockets of both ends among them
    num_connections: int
    num_sessions: int
    num_waiting: int
    num_at_peers: int

    @classmethod
    def of(cls, world: World) -> Holdings:
        return cls(
            num_tasks=len(asyncio.all_tasks()),
            num_files=len(os.listdir("/proc/self/fd")),
            num_connections=len(world.client.server.runner.server.connections),
            num_sessions=len(world.gateway.sessions),
            num_waiting=world.gateway.gate.slots.num_waiting,
            num_at_peers=sum(len(peer.sessions) for peer in world.peers),
        )


@asynccontextmanager
async def nothing_left(world: World) -> AsyncIterator[None]:
    """Behind the block everything returns to what it was before, and all slots are free."""
    before = Holdings.of(world)
    yield
    try:
        await until(lambda: Holdings.of(world) == before)
    except TimeoutError:
        assert Holdings.of(world) == before
    async with asyncio.timeout(5):
        await world.gateway.gate.slots.wait_idle()


async def grown_bytes(world: World, one_round: Callable[[], Awaitable[None]], num_rounds: int) -> int:
    """What `num_rounds` rounds leave in memory, beyond what the first ones had left."""

    async def play(times: int) -> int:
        for _ in range(times):
            async with nothing_left(world):
                await one_round()
        for peer in world.peers:
            peer.heard.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = await play(num_rounds)
        return await play(num_rounds) - before
    finally:
        tracemalloc.stop()
