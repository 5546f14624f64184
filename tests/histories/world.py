"""A world: the processes of a schedule, the bus between them, and the faults that come upon them, in virtual time.

Invariant: events happen in the order of their times, and of equal times in the order in which they were planned. So
the history depends on the schedule alone.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Any

from shared.bus.bus import Absent
from shared.protocol.messages import Heartbeat, Message, Service
from shared.protocol.subjects import instance_name
from tests.histories.bus import VirtualBus
from tests.histories.clock import Clock
from tests.histories.drafter import DrafterProcess
from tests.histories.gateway import GatewayProcess
from tests.histories.liar import LiarProcess
from tests.histories.process import Process
from tests.histories.schedule import CALM_MS, LINK_FAULTS, Drafter, Fault, Gateway, Schedule, Verifier
from tests.histories.target import Text
from tests.histories.verifier import VerifierProcess
from tests.histories.violation import Violation

LOOK_MS = 500.0
DONE_MS = 40_000.0  # after the last fault, until the last answer is over
SILENCE_MS = 170_000.0  # until a drafter gives up a silent verifier, at most: nine timeouts after a round trip of 6 s
RESTART_MS = 300.0  # between the end of a drain and the next start

KINDS = {Gateway: GatewayProcess, Verifier: VerifierProcess}


class World:
    """One history."""

    def __init__(self, schedule: Schedule, notes: list[str] | None = None) -> None:
        self.schedule = schedule
        self.clock = Clock()
        self.bus = VirtualBus(self, schedule)
        self.texts: dict[str, Text] = {}  # of answers at their gateways, by session id
        self.numerics = {verifier.fingerprint for verifier in schedule.verifiers}
        self.instances: dict[str, Process] = {}  # those that the bus has a subscription of
        self.deaths: dict[str, float] = {}  # instance id -> when it died
        self._notes = notes
        self._events: list[tuple[float, int, Process | None, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._num_started = 0
        self._living: dict[str, Process] = {}  # by name
        self._plans = {plan.name: plan for plan in (*schedule.gateways, *schedule.verifiers, *schedule.drafters)}
        self.num_tokens = self.num_answers = self.num_failed = 0

    # --- time ------------------------------------------------------------------------------------------------------

    def at(self, time_ms: float, process: Process | None, action: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._events, (time_ms, next(self._numbers), process, action, args))

    def run(self) -> None:
        """The whole history. Raises Violation."""
        for name in self._plans:
            self.start(name)
        for fault in self.schedule.faults:
            self.at(fault.at_ms, None, self.begin, fault)
        for number, request in enumerate(self.schedule.requests):
            self.at(request.at_ms, None, self._ask, number)
        end = max([CALM_MS / 3, *(fault.until_ms for fault in self.schedule.faults)])
        self.at(end, None, self._look, end)
        while self._events:
            self.clock.now_ms, _, process, action, args = heapq.heappop(self._events)
            if process is None:
                action(*args)
            else:
                process.act(action, args)

    # --- processes -------------------------------------------------------------------------------------------------

    def living(self, service: Service) -> list[Process]:
        return [process for process in self._living.values() if process.service == service]

    def lies(self, instance_id: str) -> bool:
        """Whether an instance is a lying drafter."""
        return getattr(self._plans[instance_name(instance_id)], "lies", False)

    def start(self, name: str) -> None:
        if name in self._living:
            return
        self._num_started += 1
        plan = self._plans[name]
        kind: type[Process] = LiarProcess if isinstance(plan, Drafter) and plan.lies else DrafterProcess
        process = KINDS.get(type(plan), kind)(self, plan, self._num_started)  # type: ignore[arg-type]
        self._living[name] = self.instances[process.instance_id] = process
        self.say(f"{name} starts")
        process.act(process.start, ())

    def bury(self, process: Process, noticed_ms: float = 0.0) -> None:
        """A process dies. The bus notices after a while."""
        if not process.is_alive:
            return
        process.die()
        del self._living[process.name]
        self.deaths[process.instance_id] = self.clock.now_ms
        self.at(self.clock.now_ms + noticed_ms, None, self.instances.pop, process.instance_id)
        self.say(f"{process.name} is dead")

    def numerics_of(self, instance_id: str | None) -> str:
        """Those of the target of a verifier."""
        return self._plans[instance_name(instance_id or "")].fingerprint  # type: ignore[union-attr]

    def _ask(self, number: int) -> None:
        request = self.schedule.requests[number]
        gateway = self._living.get(request.gateway)
        if isinstance(gateway, GatewayProcess):
            gateway.act(gateway.ask, (number, request))

    # --- faults ----------------------------------------------------------------------------------------------------

    def begin(self, fault: Fault) -> None:
        self.say(f"{fault.kind} of {fault.name or 'all'} for {fault.for_ms:.0f} ms")
        process = self._living.get(fault.name)
        if fault.kind in LINK_FAULTS:
            self.bus.begin(fault)
            self.at(fault.until_ms, None, self.bus.end, fault)
        elif process is None:
            return
        elif fault.kind == "kill":
            self.bury(process, min(fault.ms, fault.for_ms))
            self.at(fault.until_ms, None, self.start, fault.name)
        elif fault.kind == "pause":
            process.pause()
            self.at(fault.until_ms, None, process.resume)
        elif fault.kind == "drain":
            process.act(process.drain, (fault,))
            self.at(fault.until_ms, None, self._end_drain, process)
        elif isinstance(process, DrafterProcess | VerifierProcess):
            process.act(process.suffer, (fault,))

    def _end_drain(self, process: Process) -> None:
        if process.is_alive:
            if process.missed is None:
                process.act(process.hand_over, ())
            self.bury(process)
        self.at(self.clock.now_ms + RESTART_MS, None, self.start, process.name)

    # --- the end ---------------------------------------------------------------------------------------------------

    def _look(self, since_ms: float) -> None:
        """Ends the history when nothing is left of its sessions."""
        now = self.clock.now_ms
        left = [text for process in self._living.values() for text in process.left_over()]
        last = max((request.at_ms for request in self.schedule.requests), default=0.0)
        if not left and now > last:
            for process in self._living.values():
                process.check_end()
            self._events.clear()
            return
        unanswered = [text for gateway in self.living("gateway") for text in gateway.left_over()]
        if unanswered and now > since_ms + DONE_MS:
            raise Violation(f"not over {DONE_MS / 1e3:g} s after the last fault: {'; '.join(unanswered)}")
        if now > since_ms + DONE_MS + SILENCE_MS + 3e3 * self.schedule.lease_s:
            raise Violation(f"never ended: {'; '.join(left)}")
        self.at(now + LOOK_MS, None, self._look, since_ms)

    # --- the log of events -----------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        if self._notes is not None:
            self._notes.append(f"{self.clock.now_ms:9.2f}  {text}")

    def note(self, sender: Process, receiver: str, message: Message | Absent, fates: str) -> None:
        if self._notes is not None and not isinstance(message, Heartbeat):
            self.say(f"{sender.name} > {receiver} {shown(message)}{fates and f'  [{fates.strip()}]'}")


def shown(message: Message | Absent) -> str:
    """One line: the fields that the protocol decides by."""
    names = ("term", "epoch", "base", "drafter_id", "verifier_id", "free_run", "accepted", "finish", "code", "has_room")
    said = [f"{name}={value}" for name in names if (value := getattr(message, name, None)) is not None]
    for name in ("token_ids", "committed_ids"):
        if (ids := getattr(message, name, None)) is not None:
            said.append(f"{name}={list(ids)}")  # noqa: PERF401  two attributes
    session = str(getattr(message, "session_id", ""))[-2:]
    return f"{type(message).__name__} #{session} {' '.join(said)}"
