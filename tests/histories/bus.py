"""The bus of a history: it carries messages as objects, from one process to another, late, twice, or never.

Invariant: without a fault each message arrives once, and those from one process to another in the order of sending.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from shared.bus.bus import Absent
from shared.protocol.messages import Message, decode, encode
from tests.histories.schedule import Fault, Schedule
from tests.histories.violation import Violation

if TYPE_CHECKING:
    from tests.histories.process import Process
    from tests.histories.world import World

RECONNECT_MS = 1000.0  # after an outage, at most
SHARED = ("loss", "duplication", "overtaking", "delay")  # faults that touch a share of the messages
LISTENERS = {"gateway": "verifier", "verifier": "gateway", "drafter": "gateway"}  # service -> who hears its heartbeats


class VirtualBus:
    """Delivers to the processes of a world."""

    def __init__(self, world: World, schedule: Schedule) -> None:
        self._world = world
        self._schedule = schedule
        self._rng = random.Random(schedule.seed + 1)
        self._newest: dict[tuple[str, str], float] = {}  # when the newest message of a pair arrives
        self._faults: list[Fault] = []
        self.num_hits = 0  # messages that a fault would touch

    def begin(self, fault: Fault) -> None:
        self._faults.append(fault)

    def end(self, fault: Fault) -> None:
        self._faults.remove(fault)

    def cut_off_until(self, name: str) -> float | None:
        """When the link between a process and the bus is mended, if it is broken: the bus knows of no subscription."""
        ends = [fault.until_ms for fault in self._faults if fault.kind == "outage" and fault.name in ("", name)]
        return max(ends, default=None)

    def send(self, sender: Process, subject: str, message: Message, absent_to: str | None = None) -> None:
        parts = subject.split(".")
        if parts[2] == "report":
            return
        if self._schedule.is_encoded:
            message = self._through_the_wire(message)
        if parts[2] == "heartbeat":
            for receiver in self._world.living(LISTENERS[parts[3]]):
                self._carry(sender, receiver, subject, "heartbeat", message)
            return
        receiver = self._world.instances.get(f"{parts[3]}.{parts[4]}")
        if receiver is not None:
            self._carry(sender, receiver, subject, parts[5], message)
        else:
            self._world.note(sender, parts[3], message, " nobody")
        is_absent = receiver is None or self.cut_off_until(receiver.name) is not None
        if is_absent and absent_to is not None and self.cut_off_until(sender.name) is None:
            self._carry(sender, sender, absent_to, "absent", Absent())

    @staticmethod
    def _through_the_wire(message: Message) -> Message:
        received = decode(encode(message))
        if received != message:
            raise Violation(f"decoded {received}, encoded {message}")
        return received

    def _carry(self, sender: Process, receiver: Process, subject: str, verb: str, message: Message | Absent) -> None:
        now = self._world.clock.now_ms
        times, held, arrives, fates = 1, 0.0, self._usual_arrival(sender, receiver), ""
        for fault in self._faults:
            if not self._touches(fault, sender.name, receiver.name, verb):
                continue
            fates += f" {fault.kind}"
            if fault.kind in ("loss", "partition"):
                times = 0
            elif fault.kind == "duplication":
                times = 2
            elif fault.kind == "overtaking":
                held = self._rng.random() * fault.ms
            elif fault.kind == "delay":
                arrives += fault.ms
            elif fault.name == receiver.name:
                times = 0
            else:
                arrives += fault.until_ms - now + self._rng.random() * RECONNECT_MS
        self._world.note(sender, receiver.name, message, fates)
        pair = sender.instance_id, receiver.instance_id
        if not held:
            arrives = self._newest[pair] = max(arrives, self._newest.get(pair, 0.0))
        for number in range(times):  # what is held, and a second copy, may be overtaken
            self._world.at(arrives + held + number * self._rng.random() * 50, receiver, receiver.hear, subject, message)

    def _usual_arrival(self, sender: Process, receiver: Process) -> float:
        distance_ms = sender.plan.distance_ms + receiver.plan.distance_ms
        return self._world.clock.now_ms + distance_ms + self._rng.random() * self._schedule.jitter_ms

    def _touches(self, fault: Fault, sender: str, receiver: str, verb: str) -> bool:
        if fault.name not in ("", sender, receiver) or fault.verb not in ("", verb):
            return False
        if fault.kind in SHARED and self._rng.random() >= fault.share:
            return False
        self.num_hits += 1
        return self.num_hits not in self._schedule.spared
