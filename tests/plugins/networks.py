"""Fixture `network`: a test runs on the in-process bus, and again on a real nats-server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import nats
import pytest
from nats.aio.client import Client
from prometheus_client import CollectorRegistry

from shared.bus import nats_bus
from shared.bus.bus import Bus
from shared.bus.memory_bus import MemoryNetwork
from shared.protocol import subjects
from shared.runtime.config import ServiceSettings
from shared.runtime.metrics import BusMetrics
from tests.plugins.nats import NatsServer


class Network(Protocol):
    """A network of buses, as tests use it."""

    async def join(self, registry: CollectorRegistry) -> Bus:
        """A new member, whose metrics are in `registry`."""
        ...

    async def inject(self, subject: str, packet: bytes) -> None:
        """Sends any bytes on any subject; they are in flight when it returns."""
        ...


class InProcess:
    """A MemoryNetwork."""

    def __init__(self) -> None:
        self.memory = MemoryNetwork()
        self._stranger = self.memory.connect()

    async def join(self, registry: CollectorRegistry) -> Bus:
        return self.memory.connect(BusMetrics(registry))

    async def inject(self, subject: str, packet: bytes) -> None:
        self.memory.send(self._stranger, subject, packet)


class OverNats:
    """A nats-server, and a raw client that may publish anything."""

    def __init__(self, url: str, raw: Client) -> None:
        self._url = url
        self.raw = raw
        self._members: list[Bus] = []

    async def join(self, registry: CollectorRegistry) -> Bus:
        settings = ServiceSettings(nats_url=self._url)
        self._members.append(await nats_bus.connect(settings, subjects.new_instance_id("test"), BusMetrics(registry)))
        return self._members[-1]

    async def inject(self, subject: str, packet: bytes, reply: str = "") -> None:
        await self.raw.publish(subject, packet, reply=reply)
        for _ in range(2):  # the first flush's ping may overtake what is still queued
            await self.raw.flush()

    async def close(self) -> None:
        for member in self._members:
            await member.close()
        await self.raw.close()


@asynccontextmanager
async def over_nats(url: str) -> AsyncIterator[OverNats]:
    network = OverNats(url, await nats.connect(url))
    try:
        yield network
    finally:
        await network.close()


@pytest.fixture
async def nats_network(nats_server: NatsServer) -> AsyncIterator[OverNats]:
    async with over_nats(nats_server.url) as network:
        yield network


@pytest.fixture(params=["memory", "nats"])
async def network(request: pytest.FixtureRequest) -> AsyncIterator[Network]:
    if request.param == "memory":
        yield InProcess()
        return
    async with over_nats(request.getfixturevalue("nats_server").url) as network:
        yield network
