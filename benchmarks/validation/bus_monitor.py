"""Observes a running cell: queue utilisation, round trips and guesses on the bus, counts in the gateway's metrics.

Invariant: a pass counts once, whatever its number of verdicts. Only messages since `begin` count.
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

from benchmarks.harness.bus import bus_at
from shared.bus.bus import Absent, Bus
from shared.protocol import subjects
from shared.protocol.messages import Message, Report, Verdict

IDLE_S, CHECK_S = 10.0, 0.02
GATEWAY_METRIC = re.compile(r"^dsd_gateway_(sessions|generation_tokens_total|passes_total) (\S+)$", re.MULTILINE)


class PassKey(NamedTuple):
    """Identifies a pass: its verdicts carry exactly the same time, and no two passes do."""

    verifier_id: str
    compute_ms: float


@dataclass(frozen=True, slots=True)
class BusObservations:
    """Means over passes and over drafter reports (None: no message), and the guesses that reports count."""

    queue: float | None
    rtt_ms: float | None
    num_guesses: int = 0


class BusMonitor:
    """Receives the verdicts for gateways and the reports of drafters."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._queues: dict[PassKey, float] = {}
        self._rtts_ms: list[float] = []
        self._num_guesses = 0

    async def start(self) -> None:
        await self._bus.subscribe(subjects.all_said("gateway", Verdict), self._receive)
        await self._bus.subscribe(subjects.all_said("controller", Report), self._receive)

    def begin(self) -> None:
        """Discards what was observed before."""
        self._queues, self._rtts_ms, self._num_guesses = {}, [], 0

    def observed(self) -> BusObservations:
        """Means since `begin`."""
        queue = fmean(self._queues.values()) if self._queues else None
        return BusObservations(queue, fmean(self._rtts_ms) if self._rtts_ms else None, self._num_guesses)

    def _receive(self, subject: str, message: Message | Absent) -> None:
        match message:
            case Verdict() if message.batch:
                self._queues[PassKey(subjects.sender(subject), message.compute_ms)] = message.queue
            case Report() if _is_to_leader(subject, message):
                self._rtts_ms += [pair.rtt_ms for pair in message.pairs if pair.num_sessions and pair.rtt_ms]
                self._num_guesses += sum(pair.drafted for pair in message.pairs)


def _is_to_leader(subject: str, report: Report) -> bool:
    """Of the copies of a report, one counts."""
    leader = report.controllers[:1]
    return bool(leader) and subject == subjects.to("controller", leader[0], Report, report.drafter_id)


@asynccontextmanager
async def monitoring(nats_url: str) -> AsyncIterator[BusMonitor]:
    """A running monitor on a NATS server."""
    async with bus_at(nats_url) as bus:
        monitor = BusMonitor(bus)
        await monitor.start()
        yield monitor


@dataclass(frozen=True, slots=True)
class GatewayCounts:
    """Counts of a gateway since its start, over finished sessions."""

    num_tokens: float
    num_passes: float

    def acceptance_length_since(self, before: GatewayCounts) -> float:
        """Tokens committed per verify step."""
        return (self.num_tokens - before.num_tokens) / max(1.0, self.num_passes - before.num_passes)


async def counts_when_idle(url: str) -> GatewayCounts:
    """Returns when the gateway at `url` has no open session. Raises TimeoutError after IDLE_S."""
    async with asyncio.timeout(IDLE_S), aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"{url}/metrics") as response:
                found = {name: float(value) for name, value in GATEWAY_METRIC.findall(await response.text())}
            if found["sessions"] == 0:
                return GatewayCounts(found["generation_tokens_total"], found["passes_total"])
            await asyncio.sleep(CHECK_S)
