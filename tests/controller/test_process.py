"""A controller as a process of its own on a real nats-server."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from shared import nats_bus
from shared.config import ServiceSettings
from shared.metrics import BusMetrics
from shared.subjects import new_instance_id
from tests.controller.outside import Outside, report
from tests.plugins.nats import NatsServer

ROOT = Path(__file__).parents[2]
END_S = 20


@asynccontextmanager
async def controller_process(url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    command = [sys.executable, "-m", "services.window_controller", "--nats-url", url, "--heartbeat-s", "0.1"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_controller_process_decides_over_a_real_nats_server_and_leaves_in_order(
    nats_server: NatsServer,
) -> None:
    settings = ServiceSettings(nats_url=nats_server.url)
    bus = await nats_bus.connect(settings, new_instance_id("test"), BusMetrics(CollectorRegistry()))
    outside = Outside(bus)
    await outside.subscribe()
    async with controller_process(nats_server.url) as process:
        assert not (await asyncio.wait_for(outside.heartbeats.get(), END_S)).draining
        await outside.beat()
        for sequence in range(30):
            await outside.report(report(sequence))
        assert [(await outside.decision()).window for _ in range(3)] == [8, 12, 16]
        process.terminate()
        assert await asyncio.wait_for(process.wait(), END_S) == 0
    async with asyncio.timeout(5):
        while not (await outside.heartbeats.get()).draining:
            pass
    await bus.close()
