"""A benchmark's own connection to a NATS server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from shared.bus import nats_bus
from shared.protocol import subjects
from shared.runtime.config import ServiceSettings
from shared.runtime.metrics import BusMetrics


@asynccontextmanager
async def bus_at(nats_url: str) -> AsyncIterator[nats_bus.NatsBus]:
    """A bus, closed at the end of the block."""
    metrics = BusMetrics(CollectorRegistry())
    bus = await nats_bus.connect(ServiceSettings(nats_url=nats_url), subjects.new_instance_id("bench"), metrics)
    try:
        yield bus
    finally:
        await bus.close()
