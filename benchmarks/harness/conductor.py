"""A window controller that a benchmark conducts: from one prompt to the next every drafter gets another choice, or
another policy.

Invariant: when `choose` returns, the NATS server has passed the choice on to every pair, so that a session opened
afterwards starts with it at its drafter. Decisions are said again before they would expire, as any controller does; a
conductor must be the only one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from prometheus_client import CollectorRegistry

from awc.policies.static import StaticPolicy
from awc.policy import DEFAULT_CHOICE, PairControl, WindowChoice, WindowPolicy
from awc.registry import POLICIES
from shared.bus import nats_bus
from shared.bus.bus import Absent, Bus
from shared.protocol import subjects
from shared.protocol.messages import Heartbeat, Message, PairReport, Report, WindowDecision
from shared.runtime.config import ServiceSettings
from shared.runtime.metrics import BusMetrics

REPEAT_S = 2.0
WAIT_S = 30.0


class Pair(NamedTuple):
    """A drafter and a verifier, by their instance ids."""

    drafter_id: str
    verifier_id: str


@dataclass
class Steered:
    """A policy, and what it has seen and decided while it was followed."""

    policy: WindowPolicy
    controls: dict[Pair, PairControl] = field(default_factory=dict)
    choices: dict[Pair, WindowChoice] = field(default_factory=dict)

    def decide(self, pair: Pair, seen: PairReport) -> bool:
        """Whether the pair has another choice after one more report."""
        if pair not in self.controls:
            self.controls[pair] = self.policy.for_pair()
        before, self.choices[pair] = self.choice(pair), self.controls[pair].decide(seen)
        return self.choices[pair] != before

    def choice(self, pair: Pair) -> WindowChoice:
        return self.choices.get(pair, DEFAULT_CHOICE)


class Conductor:
    """For so many drafters and verifiers on a bus."""

    def __init__(self, bus: Bus, num_drafters: int = 1, num_verifiers: int = 1) -> None:
        self._bus = bus
        self._instance_id = subjects.new_instance_id("bench")
        self._num_drafters = num_drafters
        self._num_verifiers = num_verifiers
        self._drafters: dict[str, str] = {}  # newest instance ids by configured name
        self._verifiers: dict[str, str] = {}
        self._complete = asyncio.Event()
        self._forced: WindowChoice | None = DEFAULT_CHOICE
        self._steered = Steered(StaticPolicy(DEFAULT_CHOICE))
        self._known: dict[str, Steered] = {}  # policies that were followed, by name
        self._reports: asyncio.Queue[Report] = asyncio.Queue()
        self._sequence = self._passed_on = 0
        self._came_back = asyncio.Event()
        self.draft_ms = 0.0  # a drafter's step as it was reported last

    async def run(self) -> None:
        """Serves until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            await self._bus.subscribe(subjects.all_broadcasts(Heartbeat), self._hear)
            await self._bus.subscribe(subjects.all_broadcasts(Report), self._hear)
            await self._bus.subscribe(subjects.all_said("drafter", WindowDecision), self._hear)
            tasks.create_task(self._adapt(), name="adapt")
            tasks.create_task(self._repeat(), name="repeat")

    async def choose(self, way: WindowChoice | str) -> None:
        """From now on this choice for every pair, or what the policy of this name decides for each, which goes on from
        where it was."""
        if isinstance(way, str):
            if way not in self._known:
                self._known[way] = Steered(POLICIES[way](DEFAULT_CHOICE))
            self._forced, self._steered = None, self._known[way]
        else:
            self._forced = way
        async with asyncio.timeout(WAIT_S):
            await self._complete.wait()
            sequence = await self._say_all()
            while self._passed_on < sequence:
                self._came_back.clear()
                await self._came_back.wait()

    def _hear(self, subject: str, message: Message | Absent) -> None:
        match message:
            case Heartbeat(service="drafter", instance_id=name):
                self._drafters[subjects.instance_name(name)] = name
            case Heartbeat(service="verifier", instance_id=name):
                self._verifiers[subjects.instance_name(name)] = name
            case Report(drafter_id=name) if name in self._drafters.values():
                self.draft_ms = next((seen.draft_ms for seen in message.pairs), self.draft_ms)
                self._reports.put_nowait(message)
            case WindowDecision(sequence=sequence) if subjects.sender(subject) == self._instance_id:
                self._passed_on = max(self._passed_on, sequence)
                self._came_back.set()
        if len(self._drafters) >= self._num_drafters and len(self._verifiers) >= self._num_verifiers:
            self._complete.set()

    @property
    def _pairs(self) -> list[Pair]:
        return [Pair(drafter, verifier) for drafter in self._drafters.values() for verifier in self._verifiers.values()]

    async def _adapt(self) -> NoReturn:
        """A policy sees only what it decided on itself."""
        while True:
            report = await self._reports.get()
            for seen in report.pairs if self._forced is None else ():
                pair = Pair(report.drafter_id, seen.verifier_id)
                if self._steered.decide(pair, seen):
                    await self._say(pair)

    async def _repeat(self) -> NoReturn:
        await self._complete.wait()
        while True:
            await self._say_all()
            await asyncio.sleep(REPEAT_S)

    async def _say_all(self) -> int:
        """Every pair's choice in force; returns the number of the newest decision."""
        for pair in self._pairs:
            await self._say(pair)
        return self._sequence

    async def _say(self, pair: Pair) -> None:
        choice = self._forced or self._steered.choice(pair)
        self._sequence += 1
        decision = WindowDecision(
            pair.drafter_id,
            pair.verifier_id,
            choice.window,
            choice.chunk,
            choice.free_run,
            "static" if self._forced else self._steered.policy.name,
            self._sequence,
            choice.min_confidence,
        )
        await self._bus.publish(subjects.to("drafter", pair.drafter_id, WindowDecision, self._instance_id), decision)


@asynccontextmanager
async def conducting(nats_url: str, num_drafters: int = 1, num_verifiers: int = 1) -> AsyncIterator[Conductor]:
    """A conductor at work on a NATS server."""
    metrics = BusMetrics(CollectorRegistry())
    bus = await nats_bus.connect(ServiceSettings(nats_url=nats_url), subjects.new_instance_id("bench"), metrics)
    conductor = Conductor(bus, num_drafters, num_verifiers)
    work = asyncio.create_task(conductor.run(), name="conduct")
    try:
        yield conductor
    finally:
        work.cancel()
        await asyncio.wait({work})
        await bus.close()
