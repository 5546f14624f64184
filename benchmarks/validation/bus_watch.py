"""What services tell of a running cell: queue and round trips on the bus, counts in the gateway's metrics.

Invariant: a pass counts once, however many verdicts tell of it. What is told from `begin` on counts.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import aiohttp
from prometheus_client import CollectorRegistry

from shared.bus import nats_bus
from shared.bus.bus import Absent, Bus
from shared.protocol import subjects
from shared.protocol.messages import Message, Report, Verdict
from shared.runtime.config import ServiceSettings
from shared.runtime.metrics import BusMetrics

QUIET_S, LOOK_S = 10.0, 0.02
GATEWAY_METRIC = re.compile(r"^dsd_gateway_(sessions|output_tokens_total|passes_total) (\S+)$", re.MULTILINE)


class PassKey(NamedTuple):
    """All verdicts of one pass tell the same time to the last bit, and no two passes do."""

    verifier_id: str
    compute_ms: float


@dataclass(frozen=True, slots=True)
class Heard:
    """Means over passes with verdicts and over reports of drafters; None: nothing was told."""

    queue: float | None
    rtt_ms: float | None


class Watch:
    """Listens to verdicts for gateways and to drafters' reports."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._queues: dict[PassKey, float] = {}
        self._rtts_ms: list[float] = []

    async def start(self) -> None:
        await self._bus.subscribe(subjects.all_said("gateway", Verdict), self._hear)
        await self._bus.subscribe(subjects.all_broadcasts(Report), self._hear)

    def begin(self) -> None:
        """What was heard before doesn't count."""
        self._queues, self._rtts_ms = {}, []

    def heard(self) -> Heard:
        """Since `begin`."""
        queue = fmean(self._queues.values()) if self._queues else None
        return Heard(queue, fmean(self._rtts_ms) if self._rtts_ms else None)

    def _hear(self, subject: str, message: Message | Absent) -> None:
        match message:
            case Verdict() if message.batch:
                self._queues[PassKey(subjects.sender(subject), message.compute_ms)] = message.queue
            case Report():
                self._rtts_ms += [pair.rtt_ms for pair in message.pairs if pair.num_sessions and pair.rtt_ms]


@asynccontextmanager
async def watching(nats_url: str) -> AsyncIterator[Watch]:
    """A watch at work on a NATS server."""
    metrics = BusMetrics(CollectorRegistry())
    bus = await nats_bus.connect(ServiceSettings(nats_url=nats_url), subjects.new_instance_id("watch"), metrics)
    try:
        watch = Watch(bus)
        await watch.start()
        yield watch
    finally:
        await bus.close()


@dataclass(frozen=True, slots=True)
class Served:
    """By a gateway since its start, in sessions that are over."""

    num_tokens: float
    num_passes: float

    def length_since(self, before: Served) -> float:
        """Acceptance length: tokens committed per verify step."""
        return (self.num_tokens - before.num_tokens) / max(1.0, self.num_passes - before.num_passes)


async def served(url: str) -> Served:
    """Returns when the gateway at `url` has no session left; raises TimeoutError when that takes too long."""
    async with asyncio.timeout(QUIET_S), aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"{url}/metrics") as response:
                found = {name: float(value) for name, value in GATEWAY_METRIC.findall(await response.text())}
            if found["sessions"] == 0:
                return Served(found["output_tokens_total"], found["passes_total"])
            await asyncio.sleep(LOOK_S)
