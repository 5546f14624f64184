"""The load of a chaos run, and who asks while faults come or services restart."""

from __future__ import annotations

import asyncio
import itertools
import math
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.chaos.clients import Clients
from benchmarks.chaos.faults import FaultPlan, Injector, restart
from benchmarks.chaos.questions import Asking, Lengths
from benchmarks.chaos.records import Fault, RequestRecord
from benchmarks.chaos.system import SERVICES, ChaosSystem
from shared.runtime.home import DEFAULT_MODEL


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked. has_single: one fault at a time, too. has_rolling: every service restarts in turn at the end."""

    num_requests: int = 1000
    num_clients: int = 10
    seed: int = 1
    lengths: Lengths = field(default_factory=Lengths)
    faults: FaultPlan = field(default_factory=FaultPlan)
    has_single: bool = True
    has_rolling: bool = True


@dataclass(frozen=True, slots=True)
class Askings:
    """Requests of each part of a run."""

    calm: list[Asking]
    loaded: list[Asking]
    single: list[Asking]


@dataclass(slots=True)
class Run:
    """One run in progress."""

    system: ChaosSystem
    load: Load
    tell: Callable[[str], None]
    started_at: float

    def now(self) -> float:
        return time.monotonic() - self.started_at

    async def ask(self, askings: Iterable[Asking], num_clients: int, number: int = 0) -> list[RequestRecord]:
        """Asks until the askings end. number: how many there are; 0 prints no progress."""
        records: list[RequestRecord] = []
        clients = Clients(self.system.gateways, DEFAULT_MODEL, self.now, self.load.seed, records)
        await clients.ask_all(askings, num_clients, lambda: self._progress(records, number))
        return records

    async def ask_under_faults(
        self, askings: Sequence[Asking], plan: FaultPlan
    ) -> tuple[list[RequestRecord], list[Fault]]:
        """Asks on until plan.max_faults have begun, if that is a number."""
        injector = Injector(self.system, plan, self.now, self.tell)
        over = asyncio.Event()
        more = itertools.takewhile(
            lambda _: len(injector.faults) < plan.max_faults < math.inf, itertools.cycle(askings)
        )
        async with asyncio.TaskGroup() as tasks:
            injecting = tasks.create_task(injector.run(over), name="faults")
            records = await self.ask(itertools.chain(askings, more), self.load.num_clients, len(askings))
            over.set()
            await injecting
        return records, injector.faults

    async def ask_while_rolling(self, askings: Sequence[Asking]) -> tuple[list[RequestRecord], list[Fault]]:
        """Each process gets SIGTERM in turn. The next one follows when its successor is ready."""
        over = asyncio.Event()
        restarts: list[Fault] = []
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(
                self.ask(
                    itertools.takewhile(lambda _: not over.is_set(), itertools.cycle(askings)), self.load.num_clients
                )
            )
            for name in (name for service in SERVICES for name in self.system.names(service)):
                fault = Fault(f"term-{name.partition('-')[0]}", name, self.now())
                restarts.append(fault)
                self.tell(f"{fault.begun_s:.1f} s: {name} gets SIGTERM")
                await restart(self.system, name, signal.SIGTERM)
                await self.system.whole()
                fault.ended_s = self.now()
            over.set()
            records = await asking
        return records, restarts

    def _progress(self, records: Sequence[RequestRecord], number: int) -> None:
        if number and len(records) % max(1, number // 10) == 0:
            self.tell(f"{self.now():.0f} s: {len(records)} of {number} requests")
