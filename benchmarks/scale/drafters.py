"""Many drafters in one process: python -m benchmarks.scale.drafters FIRST NUMBER LOG; settings are DSD_STANDIN_*.

Each is a real drafter (services/edge_drafter) with its own NATS connection, state machines, draft loop and thread; they
share the event loop, the health endpoints and one replayed draft model, which only waits.

Invariant: what the model takes of the processor is in LOG (compute_log.py), so that it can be subtracted.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

from prometheus_client import CollectorRegistry

from benchmarks.standins.compute_log import ComputeLog
from benchmarks.standins.pacer import Pacer
from benchmarks.standins.replayed import ReplayedDraft
from benchmarks.standins.settings import StandinDrafterSettings
from benchmarks.standins.timed_models import TimedDraft
from services.edge_drafter.metrics import DrafterMetrics
from services.edge_drafter.model import DraftModel
from services.edge_drafter.service import Drafter
from shared.bus import nats_bus
from shared.data.profiles import read_profile
from shared.data.recording import read_recording
from shared.protocol import subjects
from shared.runtime.config import load
from shared.runtime.metrics import BusMetrics
from shared.service import Context, run_service

PROG = "python -m benchmarks.scale.drafters"
TOGETHER = 256  # drafters that connect at once


class Drafters:
    """The Work of the process. Ends all connections with it."""

    def __init__(self, drafters: list[Drafter], buses: AsyncExitStack, heartbeat_s: float) -> None:
        self._drafters = drafters
        self._buses = buses
        self._heartbeat_s = heartbeat_s

    async def run(self) -> None:
        async with self._buses, asyncio.TaskGroup() as tasks:
            for number, drafter in enumerate(self._drafters):
                delay_s = number / len(self._drafters) * self._heartbeat_s
                tasks.create_task(self._run_later(drafter, delay_s), name=drafter.instance_id)

    async def _run_later(self, drafter: Drafter, delay_s: float) -> None:
        """Spreads the heartbeats, as those of a fleet are."""
        await asyncio.sleep(delay_s)
        await drafter.run()

    async def drain(self) -> None:
        await asyncio.gather(*(drafter.drain() for drafter in self._drafters))


async def connected(number: int, settings: StandinDrafterSettings, model: DraftModel, buses: AsyncExitStack) -> Drafter:
    """One drafter, on a connection that `buses` closes."""
    instance_id, registry = subjects.new_instance_id(f"{settings.name}-{number}"), CollectorRegistry()
    bus = await nats_bus.connect(settings, instance_id, BusMetrics(registry))
    buses.push_async_callback(bus.close)
    drafter = Drafter(instance_id, settings, model, bus, DrafterMetrics(registry))
    await drafter.loop.warm_up()
    return drafter


def replayed(settings: StandinDrafterSettings, log: ComputeLog) -> DraftModel:
    """The model of all drafters: it keeps no state, so their threads may step it at once."""
    recording, profile = read_recording(Path(settings.standin_recording)), read_profile(Path(settings.standin_profile))
    draft = ReplayedDraft(recording, profile)
    draft.pace = Pacer(poll_s=0)
    return cast("DraftModel", TimedDraft(cast("DraftModel", draft), log))


def run(numbers: range, settings: StandinDrafterSettings, log: ComputeLog) -> None:
    """Runs the process to its end. numbers: one for each drafter, a part of its name."""
    model = replayed(settings, log)

    async def start(context: Context) -> Drafters:
        buses, few = AsyncExitStack(), asyncio.Semaphore(TOGETHER)

        async def one(each: int) -> Drafter:
            async with few:
                return await connected(each, settings, model, buses)

        return Drafters(await asyncio.gather(*map(one, numbers)), buses, settings.heartbeat_s)

    run_service("drafter", settings, start)


def main() -> None:
    parser = argparse.ArgumentParser(PROG, description="Runs many drafters with a replayed model in one process.")
    parser.add_argument("first", type=int, help="number of the first drafter")
    parser.add_argument("number", type=int, help="number of drafters")
    parser.add_argument("log", type=Path, help="file to which each draft step adds a line")
    arguments = parser.parse_args()
    with ComputeLog(arguments.log) as log:
        numbers = range(arguments.first, arguments.first + arguments.number)
        run(numbers, load(StandinDrafterSettings, [], PROG), log)


if __name__ == "__main__":
    main()
