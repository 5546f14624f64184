"""Shared by the bus tests: members with metrics, handlers that keep messages, a few messages."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from shared.bus.bus import Absent, Bus
from shared.protocol import subjects
from shared.protocol.messages import NO_TOKENS, Draft, Message, Open, Opened, Sampling, TokenIds

SESSION = "0123456789abcdef" * 2
GATEWAY, DRAFTER = subjects.new_instance_id("gateway"), subjects.new_instance_id("edge-1")
VERIFIER = subjects.new_instance_id("cloud")
DRAFTS = subjects.to("verifier", VERIFIER, Draft, DRAFTER)
OPENS = subjects.to("verifier", VERIFIER, Open, GATEWAY)
INBOX = subjects.inbox("verifier", VERIFIER)
OPENED = subjects.to("gateway", GATEWAY, Opened, VERIFIER)
ABSENT_TO = subjects.with_verb("gateway", GATEWAY, "absent", VERIFIER)
GATEWAY_INBOX = subjects.inbox("gateway", GATEWAY)


@dataclass
class Member:
    """A bus and its metrics."""

    bus: Bus
    registry: CollectorRegistry

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"dsd_bus_{name}_total", labels) or 0.0


class Heard:
    """A handler that keeps its messages, and lets a test wait for them."""

    def __init__(self) -> None:
        self.all: list[tuple[str, Message | Absent]] = []
        self._more = asyncio.Event()

    def __call__(self, subject: str, message: Message | Absent) -> None:
        self.all.append((subject, message))
        self._more.set()

    @property
    def messages(self) -> list[Message | Absent]:
        return [message for _, message in self.all]

    async def wait_for(self, number: int) -> list[Message | Absent]:
        async with asyncio.timeout(10):
            while len(self.all) < number:
                self._more.clear()
                await self._more.wait()
        return self.messages


def draft(base: int) -> Draft:
    return Draft(SESSION, 1, 0, base, TokenIds((base,)), True, 0.0)


def prompt(num_tokens: int) -> Open:
    return Open(SESSION, 1, None, TokenIds(range(num_tokens)), NO_TOKENS, Sampling(), NO_TOKENS, 1)
