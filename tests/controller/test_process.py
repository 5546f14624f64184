"""A controller as a process of its own on a real nats-server."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from prometheus_client import CollectorRegistry

from shared.bus import nats_bus
from shared.protocol.messages import WindowDecision
from shared.protocol.subjects import new_instance_id
from shared.runtime.config import ServiceSettings
from shared.runtime.metrics import BusMetrics
from tests.controller.outside import Outside, report
from tests.plugins.nats import NatsServer

ROOT = Path(__file__).parents[2]
END_S = 20


@asynccontextmanager
async def controller_process(url: str, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    command = [sys.executable, "-m", "services.window_controller", "--nats-url", url, "--heartbeat-s", "0.1", *flags]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def outside_of(url: str) -> AsyncIterator[Outside]:
    settings = ServiceSettings(nats_url=url)
    bus = await nats_bus.connect(settings, new_instance_id("test"), BusMetrics(CollectorRegistry()))
    outside = Outside(bus)
    await outside.subscribe()
    try:
        yield outside
    finally:
        await bus.close()


async def log_line(process: asyncio.subprocess.Process, event: str) -> dict[str, object]:
    """Reads log lines up to the one with this event."""
    assert process.stderr is not None
    async with asyncio.timeout(END_S):
        while text := await process.stderr.readline():
            line: dict[str, object] = json.loads(text)
            if line["event"] == event:
                return line
    raise AssertionError(f"no {event!r}")


async def test_a_controller_process_decides_over_a_real_nats_server_and_leaves_in_order(
    nats_server: NatsServer,
) -> None:
    async with outside_of(nats_server.url) as outside:
        async with controller_process(nats_server.url, "--window-policy", "ladder") as process:
            assert not (await asyncio.wait_for(outside.heartbeats.get(), END_S)).draining
            await outside.send_heartbeat()
            for sequence in range(30):
                await outside.report(report(sequence))
            assert [(await outside.decision()).window for _ in range(3)] == [8, 12, 16]
            process.terminate()
            assert await asyncio.wait_for(process.wait(), END_S) == 0
        async with asyncio.timeout(5):
            while not (await outside.heartbeats.get()).draining:
                pass


async def test_sighup_takes_another_policy_from_the_file_for_the_same_pair_and_a_broken_file_changes_nothing(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    file, sequences = tmp_path / "controller.toml", count()

    async with outside_of(nats_server.url) as outside:

        async def decided() -> WindowDecision:
            await outside.report(report(next(sequences)))
            return await outside.decision()

        file.write_text('window_policy = "static"\nwindow = 4\n')
        flags = ("--config-file", str(file), "--announce-s", "60", "--log-format", "json")
        async with controller_process(nats_server.url, *flags) as process:
            await asyncio.wait_for(outside.heartbeats.get(), END_S)
            await outside.send_heartbeat()
            decisions = [await decided()]
            file.write_text('window_policy = "confidence"\nmin_confidence = 0.5\n')
            process.send_signal(signal.SIGHUP)
            await log_line(process, "configuration taken")
            decisions += [await decided()]
            file.write_text('window_policy = "best"\n')
            process.send_signal(signal.SIGHUP)
            refused = await log_line(process, "configuration not taken, the old one stays")
            assert "--window-policy" in str(refused["why"])
            for _ in range(4):
                await outside.report(report(next(sequences)))
            decisions += [await outside.decision()]  # the threshold falls as before: the pair has kept its state
            file.write_text('window_policy = "ladder"\nwindow = 2\nhttp_port = 1\n')
            process.send_signal(signal.SIGHUP)
            waiting = await log_line(process, "settings that have changed and need a restart")
            assert waiting["names"] == ["http_port"]
            decisions += [await decided()]
            process.terminate()
            assert await asyncio.wait_for(process.wait(), END_S) == 0
    told = [(decision.policy, decision.window, decision.min_confidence) for decision in decisions]
    assert told == [("static", 4, 0.0), ("confidence", 8, 0.5), ("confidence", 8, 0.45), ("ladder", 2, 0.0)]
    assert [decision.sequence for decision in decisions] == [1, 2, 3, 4]
    assert len({(decision.drafter_id, decision.verifier_id) for decision in decisions}) == 1
