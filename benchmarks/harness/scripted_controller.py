"""A window controller that the benchmark scripts: it changes window or policy of every drafter between prompts.

Invariant: when `choose` returns, the NATS server has passed the choice on to every pair, so a session opened later
starts with it. Decisions are repeated before they expire. Reports are corrected as the window controller corrects them.
No other controller may run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, NoReturn

from awc.policies.static import StaticPolicy
from awc.policy import DEFAULT_CHOICE, PairControl, WindowChoice, WindowPolicy
from awc.registry import POLICIES
from benchmarks.harness.bus import bus_at
from services.window_controller.verifiers import LiveVerifiers
from shared.bus.bus import Absent, Bus
from shared.protocol import subjects
from shared.protocol.messages import Heartbeat, Load, Message, PairReport, Report, WindowDecision
from shared.timing import HEARTBEAT_S

REGISTERED: Mapping[str, Callable[[], WindowPolicy]] = {
    name: partial(kind, DEFAULT_CHOICE) for name, kind in POLICIES.items()
}
REPEAT_S = 2.0
WAIT_S = 30.0


def stop_and_wait(window: int) -> WindowChoice:
    """The paper's scheme: send a whole window, then wait for its verdict."""
    return WindowChoice(window, window, free_run=False)


class PairKey(NamedTuple):
    """Instance ids of a drafter and a verifier."""

    drafter_id: str
    verifier_id: str


@dataclass
class PolicyState:
    """A policy with its state and last choice for every pair."""

    policy: WindowPolicy
    controls: dict[PairKey, PairControl] = field(default_factory=dict)
    choices: dict[PairKey, WindowChoice] = field(default_factory=dict)

    def decide(self, pair: PairKey, report: PairReport) -> bool:
        """Feeds one report to the policy; returns whether it changes the choice."""
        if pair not in self.controls:
            self.controls[pair] = self.policy.for_pair()
        before, self.choices[pair] = self.choice(pair), self.controls[pair].decide(report)
        return self.choices[pair] != before

    def choice(self, pair: PairKey) -> WindowChoice:
        return self.choices.get(pair, DEFAULT_CHOICE)


class ScriptedController:
    """Controls all pairs of `num_drafters` and `num_verifiers` on a bus. policies: what makes each, by name."""

    def __init__(
        self,
        bus: Bus,
        num_drafters: int = 1,
        num_verifiers: int = 1,
        policies: Mapping[str, Callable[[], WindowPolicy]] = REGISTERED,
    ) -> None:
        self._bus = bus
        self.instance_id = subjects.new_instance_id("bench")
        self._num_drafters = num_drafters
        self._num_verifiers = num_verifiers
        self._drafters: dict[str, str] = {}  # newest instance ids by configured name
        self._verifiers: dict[str, str] = {}
        self._live = LiveVerifiers(num_verifiers)
        self._policies = policies
        self._is_complete = asyncio.Event()  # all drafters and verifiers are known
        self._fixed: WindowChoice | None = DEFAULT_CHOICE  # None: the policy decides
        self._policy = PolicyState(StaticPolicy(DEFAULT_CHOICE))
        self._known: dict[str, PolicyState] = {}  # policies used so far, by name
        self._reports: asyncio.Queue[Report] = asyncio.Queue()
        self._sequence = self._passed_on = 0
        self._came_back = asyncio.Event()
        self.draft_ms = 0.0  # draft step time of the last report

    async def run(self) -> None:
        """Serves until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for service in ("drafter", "verifier"):
                await self._bus.subscribe(subjects.all_broadcasts(Heartbeat, service), self._receive)
            await self._bus.subscribe(subjects.inbox("controller", self.instance_id), self._receive)
            await self._bus.subscribe(subjects.all_said("drafter", WindowDecision), self._receive)
            tasks.create_task(self._adapt(), name="adapt")
            tasks.create_task(self._repeat(), name="repeat")
            tasks.create_task(self._send_heartbeats(), name="heartbeat")

    async def choose(self, control: WindowChoice | str) -> None:
        """Applies a fixed choice to every pair, or the policy with this name, which resumes from its last state."""
        if isinstance(control, str):
            if control not in self._known:
                self._known[control] = PolicyState(self._policies[control]())
            self._fixed, self._policy = None, self._known[control]
        else:
            self._fixed = control
        async with asyncio.timeout(WAIT_S):
            await self._is_complete.wait()
            sequence = await self._send_all()
            while self._passed_on < sequence:
                self._came_back.clear()
                await self._came_back.wait()

    def _receive(self, subject: str, message: Message | Absent) -> None:
        match message:
            case Heartbeat(service="drafter", instance_id=name):
                self._drafters[subjects.instance_name(name)] = name
            case Heartbeat(service="verifier", instance_id=name):
                self._verifiers[subjects.instance_name(name)] = name
                self._live.hear(message, time.monotonic())
            case Report(drafter_id=name) if name in self._drafters.values():
                self.draft_ms = next((report.draft_ms for report in message.pairs), self.draft_ms)
                self._reports.put_nowait(message)
            case WindowDecision(sequence=sequence) if subjects.sender(subject) == self.instance_id:
                self._passed_on = max(self._passed_on, sequence)
                self._came_back.set()
        if len(self._drafters) >= self._num_drafters and len(self._verifiers) >= self._num_verifiers:
            self._is_complete.set()

    @property
    def _pairs(self) -> list[PairKey]:
        drafters, verifiers = self._drafters.values(), self._verifiers.values()
        return [PairKey(drafter, verifier) for drafter in drafters for verifier in verifiers]

    async def _adapt(self) -> NoReturn:
        """Feeds reports to the policy, except while a fixed choice is in force."""
        while True:
            report = await self._reports.get()
            for pair_report in report.pairs if self._fixed is None else ():
                pair = PairKey(report.drafter_id, pair_report.verifier_id)
                if self._policy.decide(pair, self._live.corrected(pair_report, report.machine)):
                    await self._send(pair)

    async def _send_heartbeats(self) -> NoReturn:
        while True:
            await self._send_heartbeat()
            await asyncio.sleep(HEARTBEAT_S)

    async def _send_heartbeat(self, *, draining: bool = False) -> None:
        heartbeat = Heartbeat("controller", self.instance_id, HEARTBEAT_S, [], 0, 0, "", Load(), draining)
        await self._bus.publish(subjects.broadcast(Heartbeat, "controller", self.instance_id), heartbeat)

    async def leave(self) -> None:
        """Tells the drafters, so that they follow the next one at once."""
        await self._send_heartbeat(draining=True)

    async def _repeat(self) -> NoReturn:
        await self._is_complete.wait()
        while True:
            await self._send_all()
            await asyncio.sleep(REPEAT_S)

    async def _send_all(self) -> int:
        """Sends every pair its choice; returns the sequence number of the last decision."""
        for pair in self._pairs:
            await self._send(pair)
        return self._sequence

    async def _send(self, pair: PairKey) -> None:
        choice = self._fixed or self._policy.choice(pair)
        self._sequence += 1
        decision = WindowDecision(
            pair.drafter_id,
            pair.verifier_id,
            choice.window,
            choice.chunk,
            choice.free_run,
            "static" if self._fixed else self._policy.policy.name,
            self._sequence,
            choice.min_confidence,
        )
        await self._bus.publish(subjects.to("drafter", pair.drafter_id, WindowDecision, self.instance_id), decision)


@asynccontextmanager
async def scripted_controller(
    nats_url: str,
    num_drafters: int = 1,
    num_verifiers: int = 1,
    policies: Mapping[str, Callable[[], WindowPolicy]] = REGISTERED,
) -> AsyncIterator[ScriptedController]:
    """A running controller, connected to a NATS server."""
    async with bus_at(nats_url) as bus:
        controller = ScriptedController(bus, num_drafters, num_verifiers, policies)
        work = asyncio.create_task(controller.run(), name="scripted controller")
        try:
            yield controller
        finally:
            work.cancel()
            await asyncio.wait({work})
            await controller.leave()
