"""A bus member that a test controls: it sends what the test wants and keeps what it receives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec

from shared.bus.bus import Absent, Bus
from shared.protocol import subjects
from shared.protocol.messages import Heartbeat, Load, Message, Service

WAIT_S = 10.0

Kind = TypeVar("Kind", bound=Message)


class Peer:
    """One instance. The messages of peers on one bus arrive in the order in which they were sent."""

    def __init__(self, bus: Bus, service: Service, name: str) -> None:
        self.instance_id = subjects.new_instance_id(name)
        self.heard: list[Message] = []
        self.senders: set[str] = set()
        self._service = service
        self._bus = bus
        self._num_taken = 0
        self._more = asyncio.Event()

    async def listen(self) -> None:
        await self._bus.subscribe(subjects.inbox(self._service, self.instance_id), self._receive)

    async def listen_to_all(self, kind: type[Message], service: Service) -> None:
        await self._bus.subscribe(subjects.all_broadcasts(kind, service), self._receive)

    def _receive(self, subject: str, message: Message | Absent) -> None:
        assert not isinstance(message, Absent)
        assert subjects.fits(subject, message), subject
        self.heard.append(message)
        self.senders.add(subjects.sender(subject))
        self._more.set()

    async def say(self, service: Service, receiver: str, message: Message, verb: str = "") -> None:
        verb = verb or subjects.VERBS[type(message)]
        await self._bus.publish(subjects.with_verb(service, receiver, verb, self.instance_id), message)

    async def send_heartbeat(self, **changes: object) -> None:
        """Sends a heartbeat with other values of some fields. instance_id: whom it names, by default this peer."""
        usual = Heartbeat(self._service, self.instance_id, 60.0, ["fake"], 1024, 97, "fake", Load(), False)
        heartbeat = msgspec.structs.replace(usual, **changes)
        await self._bus.publish(subjects.broadcast(Heartbeat, self._service, self.instance_id), heartbeat)

    async def next(self, kind: type[Kind], holds: Callable[[Kind], bool] = lambda message: True) -> Kind:
        """The next message of a kind for which `holds`; skips those before it."""
        async with asyncio.timeout(WAIT_S):
            while True:
                while self._num_taken < len(self.heard):
                    message = self.heard[self._num_taken]
                    self._num_taken += 1
                    if isinstance(message, kind) and holds(message):
                        return message
                self._more.clear()
                await self._more.wait()

    async def find(self, kind: type[Kind], holds: Callable[[Kind], bool] = lambda message: True) -> Kind:
        """The first message of a kind for which `holds`, among all received so far and later."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found = next(filter(holds, self.of(kind)), None)
                if found is not None:
                    return found
                self._more.clear()
                await self._more.wait()

    def of(self, kind: type[Kind]) -> list[Kind]:
        """All received messages of a kind."""
        return [message for message in self.heard if isinstance(message, kind)]


async def until(holds: Callable[[], bool]) -> None:
    """Polls a condition for which there is no event."""
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0.005)
