"""The messages that a service wants to send, in order: handlers put them in, one task publishes them."""

from __future__ import annotations

import asyncio
from typing import NoReturn

from shared.bus.bus import Bus
from shared.protocol.messages import Message


class Outbox:
    """A queue in front of a bus. It stays short because a bus that can't send drops messages instead of waiting."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._queue: asyncio.Queue[tuple[str, Message]] = asyncio.Queue()

    def put(self, subject: str, message: Message) -> None:
        self._queue.put_nowait((subject, message))

    async def run(self) -> NoReturn:
        """Publishes until cancelled."""
        while True:
            subject, message = await self._queue.get()
            await self._bus.publish(subject, message)
