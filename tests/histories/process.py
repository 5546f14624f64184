"""A process of a history: what gateways, verifiers and drafters have in common.

Invariant: a process acts only while it is alive and not paused. After each thing that it does, `settle` runs, as an
event loop runs what a handler has woken.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from shared.bus.bus import Absent
from shared.protocol.messages import Message, Service
from tests.histories.violation import Violation

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tests.histories.schedule import Fault
    from tests.histories.world import World


class Plan(Protocol):
    """What a schedule says about a process."""

    @property
    def name(self) -> str: ...
    @property
    def distance_ms(self) -> float: ...


class Process:
    """One process from its start to its death. It is the bus and the outbox of its service."""

    service: Service

    def __init__(self, world: World, plan: Plan, number: int) -> None:
        self.world = world
        self.plan = plan
        self.name = plan.name
        self.instance_id = f"{plan.name}.{number:012x}"
        self.rng = random.Random(world.schedule.seed * 1000 + number)
        self.began_ms = world.clock.now_ms - self.rng.random() * 1e7
        self.is_alive = True
        self.resumed_ms = world.clock.now_ms  # when it was last started or continued
        self.missed: list[tuple[Callable[..., None], tuple[Any, ...]]] | None = None  # while it stands still

    # --- for subclasses --------------------------------------------------------------------------------------------

    def start(self) -> None:
        raise NotImplementedError

    def receive(self, subject: str, message: Message | Absent) -> None:
        raise NotImplementedError

    def settle(self) -> None:
        """Does what has become possible."""

    def drain(self, fault: Fault) -> None:
        """Begins to stop."""

    # --- the bus, as services see it -------------------------------------------------------------------------------

    def put(self, subject: str, message: Message) -> None:
        self.world.bus.send(self, subject, message)

    async def publish(self, subject: str, message: Message, *, absent_to: str | None = None) -> None:
        self.world.bus.send(self, subject, message, absent_to)

    def hear(self, subject: str, message: Message | Absent) -> None:
        self.receive(subject, message)

    # --- time ------------------------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> float:
        """By the world's clock."""
        return self.world.clock.now_ms

    def after(self, ms: float, action: Callable[..., None], *args: Any) -> None:
        self.world.at(self.now_ms + ms, self, action, *args)

    def every(self, ms: float, action: Callable[[], None]) -> None:
        """Now and from now on."""
        action()
        self.after(ms, self.every, ms, action)

    def act(self, action: Callable[..., None], args: tuple[Any, ...]) -> None:
        """Something happens to the process."""
        if not self.is_alive:
            return
        if self.missed is not None:
            self.missed.append((action, args))
            return
        self.world.clock.began_ms = self.began_ms
        action(*args)
        if self.is_alive:
            self.settle()

    # --- what a schedule does to it --------------------------------------------------------------------------------

    def pause(self) -> None:
        if self.missed is None:
            self.missed = []

    def resume(self) -> None:
        """All that was missed happens, in order, or the messages before the timers, or the other way round."""
        if self.missed is None:
            return
        missed, self.missed = self.missed, None
        self.resumed_ms = self.now_ms
        first = self.rng.choice((None, self.hear, self.every))
        if first is not None:
            missed.sort(key=lambda each: (each[0] == self.hear) != (first == self.hear))
        for action, args in missed:
            self.act(action, args)

    def die(self) -> None:
        self.is_alive = False


def at_once(routine: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine that never waits."""
    try:
        routine.send(None)
    except StopIteration:
        return
    raise Violation("a coroutine waits in virtual time")
