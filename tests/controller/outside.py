"""A drafter and a verifier on any bus, for tests of the window controller."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from shared.bus.bus import Absent, Bus
from shared.protocol.messages import Heartbeat, Load, Message, PairReport, Report, WindowDecision
from shared.protocol.subjects import all_broadcasts, broadcast, inbox, new_instance_id, sender, to

DRAFTER, VERIFIER = new_instance_id("edge-1"), new_instance_id("cloud")


def report(
    sequence: int,
    matched: int = 16,
    mismatched: int = 0,
    drafter_id: str = DRAFTER,
    verifier_id: str = VERIFIER,
    discarded: int = 0,
) -> Report:
    seen = PairReport(
        verifier_id=verifier_id,
        num_sessions=1,
        window=8,
        drafted=16,
        matched=matched,
        mismatched=mismatched,
        late=0,
        discarded=discarded,
        draft_ms=10.0,
        rtt_ms=20.0,
        queue=0.5,
        tpot_ms=30.0,
        context=100,
    )
    return Report(drafter_id, sequence, [seen])


class Outside:
    """A drafter and a verifier: what they send and receive. controllers: who gets the drafter's reports."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.controllers: list[str] = []
        self.decisions: asyncio.Queue[WindowDecision] = asyncio.Queue()
        self.heartbeats: asyncio.Queue[Heartbeat] = asyncio.Queue()
        self.senders: set[str] = set()

    async def subscribe(self) -> None:
        await self.bus.subscribe(inbox("drafter", DRAFTER), self._hear)
        await self.bus.subscribe(all_broadcasts(Heartbeat, "controller"), self._hear)

    def _hear(self, subject: str, message: Message | Absent) -> None:
        if isinstance(message, WindowDecision):
            self.senders.add(sender(subject))
            self.decisions.put_nowait(message)
        elif isinstance(message, Heartbeat) and message.service == "controller":
            self.heartbeats.put_nowait(message)
            if message.instance_id not in self.controllers:
                self.controllers.append(message.instance_id)

    async def report(self, message: Report, sender_id: str = DRAFTER) -> None:
        """To all controllers, as soon as there is one. The message names the first one, if none."""
        async with asyncio.timeout(5):
            while not self.controllers:  # noqa: ASYNC110  they come by heartbeats
                await asyncio.sleep(0.005)
        named = message.controllers or tuple(self.controllers[:1])
        for controller_id in self.controllers:
            await self.bus.publish(
                to("controller", controller_id, Report, sender_id), replace(message, controllers=named)
            )

    async def send_heartbeat(self, instance_id: str = VERIFIER, sender_id: str = VERIFIER) -> None:
        heartbeat = Heartbeat("verifier", instance_id, 5.0, ["tiny"], 1024, 100, "none", Load(), False)
        await self.bus.publish(broadcast(Heartbeat, heartbeat.service, sender_id), heartbeat)

    async def decision(self) -> WindowDecision:
        return await asyncio.wait_for(self.decisions.get(), timeout=5)

    async def silence(self) -> None:
        """Returns when no decision has come for ten times as long as the tests' refresh takes."""
        while True:
            try:
                await asyncio.wait_for(self.decisions.get(), timeout=0.5)
            except TimeoutError:
                return

    async def heartbeat(self) -> Heartbeat:
        return await asyncio.wait_for(self.heartbeats.get(), timeout=5)
