"""A window controller that a benchmark conducts: from one prompt to the next every drafter gets another choice.

Invariant: when `choose` returns, the NATS server has passed the choice on, so that a session opened afterwards starts
with it at its drafter. Decisions are said again before they would expire, as any controller does; a conductor must be
the only one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

from prometheus_client import CollectorRegistry

from awc.policies import POLICIES
from awc.policy import DEFAULT_CHOICE, PairControl, WindowChoice
from shared import nats_bus, subjects
from shared.bus import Absent, Bus
from shared.config import ServiceSettings
from shared.messages import Heartbeat, Message, Report, WindowDecision
from shared.metrics import BusMetrics

ADAPTIVE = "ladder"  # the policy of a controller that is told none
REPEAT_S = 2.0
WAIT_S = 30.0


class Conductor:
    """For one drafter and one verifier on a bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._instance_id = subjects.new_instance_id("bench")
        self._drafter_id = self._verifier_id = ""
        self._complete = asyncio.Event()
        self._forced: WindowChoice | None = DEFAULT_CHOICE
        self._control: PairControl = POLICIES[ADAPTIVE](DEFAULT_CHOICE).for_pair()
        self._adapted = DEFAULT_CHOICE
        self._reports: asyncio.Queue[Report] = asyncio.Queue()
        self._sequence = self._passed_on = 0
        self._came_back = asyncio.Event()
        self.draft_ms = 0.0  # the drafter's step as it last reported it

    async def run(self) -> None:
        """Serves until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            await self._bus.subscribe(subjects.all_broadcasts("heartbeat"), self._hear)
            await self._bus.subscribe(subjects.all_broadcasts("report"), self._hear)
            await self._bus.subscribe(subjects.all_said("drafter", "window"), self._hear)
            tasks.create_task(self._adapt(), name="adapt")
            tasks.create_task(self._repeat(), name="repeat")

    async def choose(self, choice: WindowChoice | None) -> None:
        """From now on this choice; None: what the adaptive policy decides, which goes on from where it was."""
        self._forced = choice
        async with asyncio.timeout(WAIT_S):
            await self._complete.wait()
            sequence = await self._say()
            while self._passed_on < sequence:
                self._came_back.clear()
                await self._came_back.wait()

    def _hear(self, subject: str, message: Message | Absent) -> None:
        match message:
            case Heartbeat(service="drafter", instance_id=name):
                self._drafter_id = name
            case Heartbeat(service="verifier", instance_id=name):
                self._verifier_id = name
            case Report(drafter_id=name) if name == self._drafter_id:
                self.draft_ms = next((seen.draft_ms for seen in message.pairs), self.draft_ms)
                self._reports.put_nowait(message)
            case WindowDecision(sequence=sequence) if subjects.sender(subject) == self._instance_id:
                self._passed_on = max(self._passed_on, sequence)
                self._came_back.set()
        if self._drafter_id and self._verifier_id:
            self._complete.set()

    async def _adapt(self) -> NoReturn:
        """The adaptive policy sees only what it decided on itself."""
        while True:
            report = await self._reports.get()
            for seen in report.pairs if self._forced is None else ():
                adapted = self._control.decide(seen)
                if adapted != self._adapted:
                    self._adapted = adapted
                    await self._say()

    async def _repeat(self) -> NoReturn:
        await self._complete.wait()
        while True:
            await self._say()
            await asyncio.sleep(REPEAT_S)

    async def _say(self) -> int:
        """The choice in force; returns the decision's number."""
        choice = self._forced or self._adapted
        self._sequence += 1
        decision = WindowDecision(
            self._drafter_id,
            self._verifier_id,
            choice.window,
            choice.chunk,
            choice.free_run,
            ADAPTIVE if self._forced is None else "static",
            self._sequence,
            choice.min_confidence,
        )
        await self._bus.publish(subjects.to("drafter", self._drafter_id, "window", self._instance_id), decision)
        return decision.sequence


@asynccontextmanager
async def conducting(nats_url: str) -> AsyncIterator[Conductor]:
    """A conductor at work on a NATS server."""
    metrics = BusMetrics(CollectorRegistry())
    bus = await nats_bus.connect(ServiceSettings(nats_url=nats_url), subjects.new_instance_id("bench"), metrics)
    conductor = Conductor(bus)
    work = asyncio.create_task(conductor.run(), name="conduct")
    try:
        yield conductor
    finally:
        work.cancel()
        await asyncio.wait({work})
        await bus.close()
