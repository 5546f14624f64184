"""Faults of a chaos run: a list from a seed, and what puts each one into effect.

Invariant: no fault hits the last ready gateway, verifier or NATS server. A fault that can't hit anything is left out,
and the next one of the list takes its place. When `inject` ends, every fault has ended too.
"""

from __future__ import annotations

import asyncio
import math
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from benchmarks.chaos.records import Fault
from benchmarks.chaos.system import LOOK_S, RESTART_S, SERVICES, ChaosSystem
from benchmarks.harness.link import LinkConditions

HANG_S, CUT_S, LOSS_S, FULL_S, STEP_S, MEMORY_S = 3.0, 4.0, 4.0, 4.0, 4.0, 4.0
LOSS = LinkConditions(stall_rate=0.2)
CLOCK_STEPS_S = (3600, -3600)
MEMORY_LEFT_MIB = 4096  # for all others, when another process takes memory
REST_S = 2.0  # between the end of a fault and the next one, one at a time
WITH_CLOCK = ("gateway", "verifier", "drafter", "controller")
KEPT = ("gateway", "verifier", "nats")  # one of each stays ready
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM}
OF_PROCESSES = tuple(f"{verb}-{service}" for verb in ("kill", "hang", "term") for service in SERVICES)
OF_MACHINE = ("partition", "loss", "full-disk", "memory", "clock")
KINDS = (*OF_PROCESSES, *OF_MACHINE)
# Takes all memory but MEMORY_LEFT_MIB, holds it, and ends; if the kernel runs out of it, this process is the first.
TAKE_MEMORY = """
import mmap, pathlib, sys, time
pathlib.Path("/proc/self/oom_score_adj").write_text("1000")
fields = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
taken = int(fields["MemAvailable"].split()[0]) * 1024 - int(sys.argv[1]) * 1024 * 1024
held = mmap.mmap(-1, max(taken, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
time.sleep(float(sys.argv[2]))
"""
FAKETIME = ("/usr/lib", "/usr/local/lib")  # where to look for its library

Now: TypeAlias = Callable[[], float]


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """draw: decides its target among those that may be hit, 0 … 1."""

    kind: str
    draw: float


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Kinds of faults, and when they come."""

    kinds: Sequence[str] = KINDS
    seed: int = 1
    period_s: float = 2.0  # between the beginnings of two faults
    max_faults: float = math.inf


def fault_list(kinds: Sequence[str], seed: int) -> Iterator[PlannedFault]:
    """Endless; each kind once in each round, in random order."""
    generator = random.Random(seed)
    while True:
        for kind in generator.sample(kinds, len(kinds)):
            yield PlannedFault(kind, generator.random())


def find_faketime() -> Path | None:
    """faketime's library, if it is installed."""
    found = (path for folder in FAKETIME for path in Path(folder).glob("**/faketime/libfaketime.so.1"))
    return next(found, None)


def not_runnable(system: ChaosSystem, has_clock: bool) -> dict[str, str]:
    """Kinds that this machine can't have, with the reason."""
    reasons = {}
    if not system.is_log_disk:
        reasons["full-disk"] = "a tmpfs can't be mounted"
    if not has_clock:
        reasons["clock"] = "faketime is not installed"
    return reasons


class Injector:
    """Puts the faults of a list into effect, one every `period_s`. `now` counts from the start of the run."""

    def __init__(self, system: ChaosSystem, plan: FaultPlan, now: Now, tell: Callable[[str], None]) -> None:
        self.faults: list[Fault] = []
        self._plan = plan
        self._tell = tell
        self._system = system
        self._list = fault_list(plan.kinds, plan.seed)
        self._now = now

    async def run(self, over: asyncio.Event) -> None:
        """Until `over` is set, and the last fault has ended."""
        begun, period_s = time.monotonic(), self._plan.period_s
        async with asyncio.TaskGroup() as tasks:
            while not over.is_set() and len(self.faults) < self._plan.max_faults:
                if (fault := await self._next()) is not None:
                    tasks.create_task(self._put(fault), name=fault.kind)
                due = begun + period_s * (1 + int((time.monotonic() - begun) / period_s))
                with suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), due - time.monotonic())

    async def one_by_one(self, number: int) -> None:
        """Puts `number` faults of the list into effect; each begins when nothing is left of the last one."""
        while len(self.faults) < number and (fault := await self._next()) is not None:
            await self._put(fault)
            await self._system.whole()
            fault.ended_s = self._now()
            await asyncio.sleep(REST_S)

    async def _next(self) -> Fault | None:
        """The next fault of the list that can hit something now."""
        for planned in (next(self._list) for _ in range(len(self._plan.kinds))):
            targets = await self._targets(planned.kind)
            if targets:
                fault = Fault(planned.kind, targets[int(planned.draw * len(targets))], self._now())
                self.faults.append(fault)
                self._tell(f"{fault.begun_s:.1f} s: {fault.kind} {fault.target}")
                return fault
        return None

    async def _targets(self, kind: str) -> list[str]:
        """What a fault of this kind may hit now; one empty name for the machine."""
        if any(fault.kind == kind and fault.ended_s is None for fault in self.faults):
            return []  # one at a time
        if kind not in OF_PROCESSES and kind != "clock":
            return [""]
        system, service = self._system, kind.partition("-")[2]
        services = WITH_CLOCK if kind == "clock" else (service,)
        names = [name for each in services for name in system.names(each)]
        ready = [name for name in names if await system.is_ready(name)]
        return ready if len(ready) > 1 or service not in KEPT else []

    async def _put(self, fault: Fault) -> None:
        """Begins a fault and ends it. A process that restarts is ready again at the end."""
        system = self._system
        match fault.kind.partition("-")[0]:
            case "kill" | "term" as verb:
                await restart(system, fault.target, SIGNALS[verb])
            case "hang":
                await _hold(system, [fault.target], HANG_S)
            case "partition":
                await _hold(system, system.names("relay"), CUT_S)
            case "loss":
                system.set_link(LOSS)
                await asyncio.sleep(LOSS_S)
                system.set_link(LinkConditions())
            case "full":
                await _fill(system.run_dir / "logs" / "filler")
            case "memory":
                await _take_memory()
            case "clock":
                system.set_clock(fault.target, CLOCK_STEPS_S[len(self.faults) % 2])
                await asyncio.sleep(STEP_S)
                system.set_clock(fault.target, 0)
        fault.ended_s = self._now()


async def restart(system: ChaosSystem, name: str, number: signal.Signals) -> None:
    """Ends a process, and returns when its successor is ready."""
    child = system.children[name]
    num_starts = child.num_starts
    system.signal(name, number)
    async with asyncio.timeout(RESTART_S):
        while child.num_starts == num_starts or not await system.is_ready(name):  # noqa: ASYNC110  what other processes do sets no event here
            await asyncio.sleep(LOOK_S)


async def _hold(system: ChaosSystem, names: Sequence[str], seconds: float) -> None:
    system.stopped.update(names)
    for name in names:
        system.signal(name, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    for name in names:
        system.signal(name, signal.SIGCONT)
    system.stopped.difference_update(names)


async def _fill(path: Path) -> None:
    """Takes all of the disk, and gives it back."""

    def write() -> None:
        with suppress(OSError), path.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))

    await asyncio.to_thread(write)
    await asyncio.sleep(FULL_S)
    await asyncio.to_thread(path.unlink)


async def _take_memory() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", TAKE_MEMORY, str(MEMORY_LEFT_MIB), str(MEMORY_S)
    )
    await process.wait()
